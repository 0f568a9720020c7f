"""What the graph says is heard is what is heard: over random graphs, every input and every reply is changed in turn.

Agents name what they read first and their own words last, so other own words change an agent's reply and nothing of
what it has read. An output that hears the source scores two words differently then; one that doesn't, the same.
"""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from lean_fusers import geometry, lean
from tiny import config_of, load_tiny, save_tokenizer

from cachegraph import Graph
from cachegraph.channels.fusers.files.card import ModelEnd
from cachegraph.channels.fusers.files.weights import save_fuser
from cachegraph.channels.fusers.networks.translator import new_translator
from cachegraph.errors import ChannelError
from cachegraph.graph.plan.dataflow import Dataflow, Source
from cachegraph.graph.plan.expected_routes import expected_routes, read_included
from cachegraph.graph.run.hooks import RunHooks
from cachegraph.graph.run.run import Run
from cachegraph.graph.run.subgraph import answering_node

pytestmark = pytest.mark.anyio

WORDS = ("one", "two")
ENDING = "and so on"
OTHERS = ("but then no", "what is green?", "SEVEN: 7")
ROUNDING = 1e-3  # nats; a changed context moves scores by far more in models this random


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, and from the other's cache to the small one's a fuser and a translator."""
    folder = tmp_path_factory.mktemp("recipe")
    kinds = {"small": "llama", "other": "qwen2"}
    models = {name: load_tiny(config_of(kind), folder / name) for name, kind in kinds.items()}
    for name in kinds:
        save_tokenizer(folder / name)
    ends = [ModelEnd(name=name, geometry=geometry(models[name])) for name in kinds]
    translator = new_translator(*ends, rank=6, hidden=4, seed=2)
    with torch.no_grad():
        translator.network.gate.fill_(0.9)
    save_fuser(translator, folder / "translator")
    fuser = lean(models["small"], models["other"])
    object.__setattr__(
        fuser, "card", fuser.card.model_copy(update=dict(zip(("receiver", "sharer"), ends, strict=True)))
    )
    save_fuser(fuser, folder / "fuser")
    return folder


def random_recipe(dice: random.Random) -> dict[str, Any]:
    names = "abcd"[: dice.randint(3, 4)]
    pairs = [(dice.choice(names[:place]), names[place]) for place in range(1, len(names))]
    pairs += [pair for pair in ((a, b) for a in names for b in names if a < b) if dice.random() < 0.3]
    pairs = list(dict.fromkeys(pairs))
    back = (names[1], names[0]) if (names[0], names[1]) in pairs and dice.random() < 0.3 else None
    edges = [random_edge(dice, *pair) for pair in pairs]
    if back is not None:
        edges.append({**random_edge(dice, *back), "max_rounds": 2})
    agents = {}
    for name in names:
        reads = [f"{{{{ {word} }}}}" for word in WORDS if name == names[0] or dice.random() < 0.25]
        slots = [f"{{{{ {edge['from']} }}}}" for edge in edges if edge["to"] == name and dice.random() < 0.8]
        count = 0 if dice.random() < 0.2 and name not in (names[0], names[1], names[-1]) else 6
        agents[name] = {
            "model": dice.choice(["small", "small", "other"]),
            "prompt": " ".join([*slots, *reads, ENDING]),
            "chat": False,
            "generate": {"max_new_tokens": count, "ignore_eos": count > 0},
        }
    senders = {edge["from"] for edge in edges}
    edges += [random_edge(dice, name, names[-1]) for name in names[:-1] if name not in senders]
    return {"version": 1, "name": "g", "agents": agents, "edges": edges, "output": names[-1]}


def random_edge(dice: random.Random, sender: str, receiver: str) -> dict[str, Any]:
    channel = dice.choice(["text", "cache", "cache", "both", "auto"])
    edge: dict[str, Any] = {"from": sender, "to": receiver, "channel": channel}
    if channel != "text":
        edge["carries"] = dice.choice([None, None, "prompt", "all"])
        edge["fuser"] = dice.choice([None, "fuser", "translator"])
    return edge


async def scores(folder: Path, recipe: dict[str, Any], inputs: dict[str, str]) -> tuple[list[float], Dataflow]:
    """How likely the output finds two words, and what is said of what it hears."""
    models = {name: {"source": f"./{name}", "dtype": "float32"} for name in ("small", "other")}
    data = {**recipe, "models": models, "inputs": {word: {} for word in WORDS}}
    async with Graph.from_dict(data, folder, allow_paths=True) as graph:
        wiring, hooks = await graph.awire(), RunHooks()
        name, node = answering_node(wiring)
        await Run(graph.spec, inputs, graph.awire, None, hooks).execute()
        found = await node.agent.score(hooks.turns[name], ["osprey", "walnut"])  # type: ignore[attr-defined]
        routes = {(route.edge.sender, route.edge.receiver): route for each in wiring.nodes for route in each.entries}
        expected = expected_routes(graph.spec, folder, lambda entry: read_included(entry, folder))
        for pair, route in routes.items():
            told = expected[pair]
            assert (told.used, told.carries, told.fuser) == (route.used, route.carries, route.fuser)
            assert (told.needs_text, told.needs_cache) == (route.needs_text, route.needs_cache)
            assert told.fallback_reason == route.fallback_reason
        return [each.logprob for each in found], Dataflow(graph.spec, routes)


@pytest.mark.parametrize("seed", range(6))
async def test_the_output_hears_exactly_what_is_said(folder: Path, seed: int) -> None:
    dice = random.Random(seed)
    inputs = {"one": "a bird of prey", "two": "the sea at night"}
    while True:
        recipe = random_recipe(dice)
        try:
            before, flow = await scores(folder, recipe, inputs)
        except ChannelError:  # no input reaches the output
            continue
        break
    output = recipe["output"]
    for source in [*map(Source, WORDS), *(Source(name, True) for name in recipe["agents"] if name != output)]:
        if source.is_reply and not recipe["agents"][source.name]["generate"]["max_new_tokens"]:
            continue  # its own words are what it hands over
        heard, moved = source in flow.heard[output], False
        for other in OTHERS[: 3 if heard else 1]:  # another prompt may happen to get the same greedy reply
            after, _ = await scores(folder, *changed(recipe, inputs, source, other))
            moved = moved or max(abs(a - b) for a, b in zip(before, after, strict=True)) > ROUNDING
            if moved:
                break
        assert moved == heard, f"{source}: {recipe}"


def changed(
    recipe: dict[str, Any], inputs: dict[str, str], source: Source, other: str
) -> tuple[dict[str, Any], dict[str, str]]:
    """The recipe and its inputs with another text in the source's place, or at the end of the prompt that makes it."""
    if not source.is_reply:
        return recipe, {**inputs, source.name: other}
    entry = recipe["agents"][source.name]
    entry = {**entry, "prompt": entry["prompt"].replace(ENDING, other)}
    return {**recipe, "agents": {**recipe["agents"], source.name: entry}}, inputs
