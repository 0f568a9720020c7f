"""A sender computes only the layers that its edges read, and nothing that anybody gets changes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lean_fusers import geometry, lean
from tiny import config_of, load_tiny, save_tokenizer

from cachegraph import Graph
from cachegraph.agents.local.agent import LocalAgent
from cachegraph.channels.cache.edge_plan import FusePlan, GraftPlan, JointPlan
from cachegraph.channels.fusers.files.card import ModelEnd
from cachegraph.channels.fusers.files.weights import save_fuser
from cachegraph.channels.fusers.networks.translator import new_translator
from cachegraph.channels.payload import most_layers
from cachegraph.engine.engine import Engine
from cachegraph.graph.run.hooks import RunHooks
from cachegraph.graph.run.run import Run
from cachegraph.graph.run.subgraph import answering_node

pytestmark = pytest.mark.anyio

STORY, QUESTION = "the sea is green and the sky is blue, and nobody knows", "what is green?"
KINDS = {"small": "llama", "other": "qwen2"}
READER: dict[str, Any] = {
    "model": "other",
    "prompt": "Read: {{ story }} So",
    "chat": False,
    "generate": {"max_new_tokens": 5, "ignore_eos": True},
}
ANSWERER: dict[str, Any] = {
    "model": "small",
    "prompt": "{{ reader }} {{ question }} It",
    "chat": False,
    "generate": {"max_new_tokens": 4},
}
EDGE: dict[str, Any] = {
    "from": "reader",
    "to": "answerer",
    "channel": "cache",
    "carries": "prompt",
    "fuser": "first",
    "fallback": "error",
}


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of three layers; translators of the other's first layer, its second and all three; a fuser."""
    folder = tmp_path_factory.mktemp("recipe")
    models = {name: load_tiny(config_of(kind), folder / name) for name, kind in KINDS.items()}
    for name in KINDS:
        save_tokenizer(folder / name)
    ends = [ModelEnd(name=name, geometry=geometry(models[name])) for name in KINDS]
    for name, layers in (("first", [0]), ("second", [1]), ("all", [0, 1, 2])):
        made = new_translator(*ends, sharer_layers=layers, rank=6, hidden=4, seed=2)
        with torch.no_grad():
            made.network.gate.fill_(0.9)
        save_fuser(made, folder / name)
    fuser = lean(models["small"], models["other"], reads="own-prompt", alignment="offsets", layer_map="last_aligned")
    save_fuser(fuser, folder / "fuser")
    return folder


@pytest.fixture
def depths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of layers that each prefill of the sharer computed."""
    found: list[int] = []
    prefill = Engine.prefill

    async def seen(self: Engine, *args: Any, **options: Any) -> Any:
        done = await prefill(self, *args, **options)
        if "other" in self.model.name:
            found.append(len(done.segments[-1].layers))
        return done

    monkeypatch.setattr(Engine, "prefill", seen)
    return found


def recipe(edges: list[dict[str, Any]], **agents: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "name": "g",
        "models": {name: {"source": f"./{name}", "dtype": "float32", "device": "cpu"} for name in KINDS},
        "inputs": {"story": {}, "question": {}},
        "agents": {"reader": READER, "answerer": ANSWERER, **agents},
        "edges": edges,
        "output": "answerer",
    }


async def scores(folder: Path, data: dict[str, Any]) -> tuple[list[float], Any]:
    """The log-probabilities of two words after the output's prompt, and the run's result."""
    async with Graph.from_dict(data, folder, allow_paths=True) as graph:
        hooks = RunHooks()
        result = await Run(graph.spec, {"story": STORY, "question": QUESTION}, graph.awire, None, hooks).execute()
        name, node = answering_node(await graph.awire())
        found = await node.agent.score(hooks.turns[name], ["osprey", "walnut"])  # type: ignore[attr-defined]
        return [each.logprob for each in found], result


def everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every edge read all layers."""
    for plan in (GraftPlan, FusePlan, JointPlan):
        monkeypatch.setattr(plan, "cache_layers", None)


@pytest.mark.parametrize(("fuser", "computed"), [("first", 1), ("second", 2), ("all", 3)])
async def test_a_sender_stops_at_the_depth_that_its_translator_reads(
    folder: Path, monkeypatch: pytest.MonkeyPatch, depths: list[int], fuser: str, computed: int
) -> None:
    data = recipe([{**EDGE, "fuser": fuser}])
    few, result = await scores(folder, data)
    assert depths == [computed]
    assert result.edges["reader", "answerer"].positions_grafted > 0
    everything(monkeypatch)
    assert (await scores(folder, data))[0] == few
    assert depths == [computed, 3]


async def test_an_agent_that_only_reads_stops_there_too(folder: Path, depths: list[int]) -> None:
    edge = {key: value for key, value in EDGE.items() if key != "carries"}
    await scores(folder, recipe([edge], reader={**READER, "generate": {"max_new_tokens": 0}}))
    assert depths == [1]


@pytest.mark.parametrize(
    ("more", "computed"),
    [
        ({"fuser": "second"}, 2),
        ({"fuser": "all"}, 3),
        ({"carries": "reply"}, 3),
        ({"fuser": {"graft": "first", "fuse": "fuser"}}, 3),
    ],
)
async def test_of_several_edges_the_deepest_decides(
    folder: Path, monkeypatch: pytest.MonkeyPatch, depths: list[int], more: dict[str, Any], computed: int
) -> None:
    """A reply needs all layers, and so does a fuser of the agents' own prompts that reads the last one."""
    agents = {
        "reader": {**READER, "prompt": "{{ question }} {{ story }}"},
        "second": ANSWERER,
        "answerer": {**ANSWERER, "prompt": "{{ reader }} {{ second }} {{ question }} It"},
    }
    data = recipe([EDGE, {**EDGE, "to": "second", **more}, {"from": "second", "to": "answerer"}], **agents)
    found, _ = await scores(folder, data)
    assert depths == [computed]
    everything(monkeypatch)
    assert (await scores(folder, data))[0] == found


async def test_a_reply_that_is_asked_for_afterwards_is_written_by_all_layers(folder: Path) -> None:
    async with Graph.from_dict(recipe([EDGE]), folder, allow_paths=True) as graph:
        hooks = RunHooks()
        await Run(graph.spec, {"story": STORY, "question": QUESTION}, graph.awire, None, hooks).execute()
        later = await hooks.turns["answerer"].deliveries[0].payload.read()
        over_text = await graph.with_channels("text").arun(story=STORY, question=QUESTION)
    assert later == over_text.agents["reader"].text != ""


async def test_an_included_recipe_stops_at_the_depth_of_the_outer_edge(
    folder: Path, monkeypatch: pytest.MonkeyPatch, depths: list[int]
) -> None:
    inner = {**recipe([]), "agents": {"reader": {**READER, "generate": {"max_new_tokens": 0}}}, "output": "reader"}
    Graph.from_dict(inner, folder, allow_paths=True).to_yaml(folder / "inner.yaml")
    nested = {"graph": "inner.yaml", "inputs": {"story": "{{ story }}", "question": ""}}
    edge = {key: value for key, value in EDGE.items() if key != "carries"}
    data = recipe([{**edge, "from": "library"}])
    data["agents"] = {"library": nested, "answerer": {**ANSWERER, "prompt": "{{ library }} {{ question }} It"}}
    found, _ = await scores(folder, data)
    assert depths == [1]
    everything(monkeypatch)
    assert (await scores(folder, data))[0] == found
    assert depths == [1, 3]


async def test_rounds_with_and_without_received_caches_are_joined(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first round the reader gets no cache and could stop early, in the second it has to compute all layers."""
    edges = [
        {**EDGE, "rounds": "all"},
        {"from": "reader", "to": "critic", "channel": "cache", "carries": "prompt"},
        {"from": "critic", "to": "reader", "channel": "cache", "carries": "prompt", "max_rounds": 2},
    ]
    critic = {**READER, "prompt": "{{ reader }} But {{ question }}"}
    data = recipe(edges, reader={**READER, "prompt": "{{ critic }} Read: {{ story }} So"}, critic=critic)
    found, _ = await scores(folder, data)
    everything(monkeypatch)
    assert (await scores(folder, data))[0] == found


async def test_a_rebuilt_cache_has_the_same_layers(folder: Path) -> None:
    async with Graph.from_dict(recipe([EDGE]), folder, allow_paths=True) as graph:
        hooks = RunHooks()
        await Run(graph.spec, {"story": STORY, "question": QUESTION}, graph.awire, None, hooks).execute()
        node = next(node for node in (await graph.awire()).nodes if node.name == "reader")
        lost = hooks.turns["answerer"].deliveries[0].payload.cache
        assert lost is not None
        assert isinstance(node.agent, LocalAgent)
        again = await node.agent.rebuild(hooks.turns["reader"], ())
    assert again.ids == lost.ids
    for cache in (lost, again):
        assert [len(kv.layers) for kv in cache.segments] == [1]


def test_the_most_layers_of_several_edges() -> None:
    cases: list[tuple[list[int | None], int | None]] = [([], None), ([2], 2), ([2, 5], 5), ([2, None], None)]
    assert [most_layers(numbers) for numbers, _ in cases] == [expected for _, expected in cases]
