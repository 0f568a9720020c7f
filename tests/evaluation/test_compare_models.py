"""With the two demo models, on stories written for this test."""

import gc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from stories import ROWS

from cachegraph import Comparison, Graph, compare
from cachegraph.agents.base import Control, Delivery, Turn
from cachegraph.engine.cpu.build import Kernels, kernels
from cachegraph.engine.cpu_capabilities import has_tiles
from cachegraph.engine.engine import Engine

pytestmark = [pytest.mark.models, pytest.mark.usefixtures("demo_engines"), pytest.mark.timeout(600)]

RECIPE = Path(__file__).parents[2] / "recipes" / "story-qa.yaml"


def graph(dtype: str, **generate: Any) -> Graph:
    loaded = Graph.from_yaml(RECIPE)
    declared = loaded.spec.model_dump(by_alias=True)
    declared["models"] = {"small": {"source": "smollm2-135m-instruct", "dtype": dtype}}
    declared["agents"]["answerer"]["generate"].update(generate)
    return loaded.with_spec(type(loaded.spec).model_validate(declared))


@pytest.fixture(scope="module")
def exact() -> Iterator[Graph]:
    with graph("float32") as opened:
        yield opened


async def reader_and_answerer(opened: Graph) -> tuple[Any, Any]:
    wiring = await opened.awire()
    reader, answerer = wiring.nodes
    return reader, answerer


async def turn_of(opened: Graph, row: dict[str, Any]) -> Turn:
    """The answerer's turn, with what the reader sends."""
    reader, answerer = await reader_and_answerer(opened)
    inputs = {name: row[name] for name in ("context", "question")}
    said = await reader.agent.turn(Turn(inputs, needs_text=False, needs_cache=True))
    return Turn(inputs, [Delivery(answerer.entries[0], said.payload)])


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_grafting_gives_what_reading_the_same_tokens_in_the_same_order_gives(exact: Graph) -> None:
    _, node = await reader_and_answerer(exact)
    engine = node.agent.peer().engine
    for row in ROWS[:3]:
        turn = await turn_of(exact, row)
        grafted = await _prefilled(node.agent, turn)
        choices: list[str] = list(row["choices"])  # type: ignore[call-overload]
        scores = await node.agent.score(turn, choices)
        for choice, score in zip(choices, scores, strict=True):
            assert score.logprob == pytest.approx(_slowly(engine, grafted.ids, choice), abs=1e-3)
        reply = await node.agent.turn(turn)
        alone = await engine.generate(grafted.ids, (), node.agent._spec.generate)
        assert reply.payload.text == alone.text


async def _prefilled(agent: Any, turn: Turn) -> Any:
    from cachegraph.agents.local.inbox import Inbox
    from cachegraph.agents.prompt.render_threads import TextWork

    inbox, work = Inbox(agent.name, turn), TextWork()
    return await agent._prefill(inbox, agent._renderer(inbox, work), work, finish=False)


def _slowly(engine: Any, prompt: list[int], choice: str) -> float:
    """The plain way: one row at a time through transformers' own forward pass, without any cache."""
    import torch

    ids = engine.model.tokenizer.encode(choice, special=False).ids
    with torch.inference_mode():
        network = engine.model.network
        own = network.config._attn_implementation
        network.set_attn_implementation("eager")
        try:
            logits = network(input_ids=torch.tensor([[*prompt, *ids]]), use_cache=False).logits[0]
        finally:
            network.set_attn_implementation(own)
    predicted = logits[len(prompt) - 1 : -1].log_softmax(-1)
    return float(predicted.gather(1, torch.tensor(ids)[:, None]).sum())


def test_one_model_answers_the_same_over_text_and_over_cache(exact: Graph) -> None:
    found = compare(exact, ROWS[:4], variants=["text", "cache"])
    text, cache = found.records_of("text"), found.records_of("cache")
    assert [each.reply for each in text] == [each.reply for each in cache]
    for mine, other in zip(cache, text, strict=True):
        assert [each.logprob for each in mine.scores] == pytest.approx(
            [each.logprob for each in other.scores], abs=1e-4
        )


def test_a_comparison_gives_all_its_caches_back(demo_engines: dict[str, Engine]) -> None:
    engine = demo_engines["smollm2-135m-instruct"]
    compare(Graph.from_yaml(RECIPE), ROWS[:3], variants=["cache", "mismatched"])
    gc.collect()
    use = engine.kv_use()
    assert use.used == use.prefixes
    assert use.peak > 0


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_scores_do_not_depend_on_the_other_choices(exact: Graph) -> None:
    turn = await turn_of(exact, ROWS[0])
    agent = (await reader_and_answerer(exact))[1].agent
    choices = ["a green key", "k", "a loaf of bread that is still warm"]
    together = await agent.score(turn, choices)
    for choice, score in zip(choices, together, strict=True):
        (single,) = await agent.score(turn, [choice])
        assert single.logprob == pytest.approx(score.logprob, abs=1e-4)
        assert (score.characters, score.tokens) == (len(choice), single.tokens)
    assert together == await agent.score(turn, choices)  # bit for bit, in float32 too


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_mismatched_graft_is_the_other_examples_turn_with_this_question(exact: Graph) -> None:
    agent = (await reader_and_answerer(exact))[1].agent
    mine, other = [await turn_of(exact, row) for row in ROWS[:2]]
    choices = ROWS[0]["choices"]
    swapped = await agent.score(replace(mine, control=Control("mismatched", other)), choices)
    mixed = await turn_of(exact, {**ROWS[1], "question": ROWS[0]["question"]})
    assert swapped == await agent.score(mixed, choices)
    assert swapped != await agent.score(mine, choices)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_zeroed_graft_says_nothing_of_its_content(exact: Graph) -> None:
    agent = (await reader_and_answerer(exact))[1].agent
    mine = await turn_of(exact, ROWS[0])
    zero = await agent.score(replace(mine, control=Control("zero")), ROWS[0]["choices"])
    plane = mine.deliveries[0].payload.cache
    assert plane is not None
    doubled = [
        type(segment)(
            tuple(type(layer)(layer.keys * 2, layer.values * 2) for layer in segment.layers), segment.positions
        )
        for segment in plane.segments
    ]
    message = replace(mine.deliveries[0].payload, cache=replace(plane, segments=tuple(doubled)))
    changed = replace(mine, deliveries=[Delivery(mine.deliveries[0].route, message)], control=Control("zero"))
    assert await agent.score(changed, ROWS[0]["choices"]) == zero
    assert zero != await agent.score(mine, ROWS[0]["choices"])


def tiles_are_ours() -> bool:
    found = kernels()
    return isinstance(found, Kernels) and found.in_tiles


def numbers(found: Comparison) -> list[Any]:
    return [(each.key, each.partner, each.reply, each.scores) for each in found.records]


def test_the_whole_comparison_repeats_bit_for_bit_however_many_run_at_a_time() -> None:
    """Eight tokens a reply are enough for rows to begin and to end beside others."""
    variants = ["text", "cache", "alone", "mismatched", "zero"]
    with graph("bfloat16", max_new_tokens=8) as opened:
        eight = compare(opened, ROWS, variants=variants)
        again = compare(opened, ROWS, variants=variants)
        single = compare(opened, ROWS, variants=variants, concurrency=1)
    assert eight.environment.concurrency == (8 if tiles_are_ours() or not has_tiles(torch) else 1)
    assert numbers(eight) == numbers(again) == numbers(single)
    row = eight.row("cache")
    assert row is not None
    assert row.cache_share == 1.0
    assert row.agents["answerer"].reused > 10
    assert eight.differences == again.differences == single.differences
    assert quality(eight, "cache") > quality(eight, "mismatched")


def quality(found: Comparison, variant: str) -> float:
    row = found.row(variant)
    assert row is not None
    return row.quality["answer_logprob"].value


DUO: dict[str, Any] = {
    "name": "duo",
    "models": {"small": "smollm2-135m-instruct", "other": "gemma-3-270m"},
    "inputs": {"context": {}, "question": {}},
    "agents": {
        "expert": {"model": "other", "prompt": "{{ context }}", "generate": {"max_new_tokens": 8}},
        "answerer": {"model": "small", "prompt": "{{ context }} {{ question }}", "generate": {"max_new_tokens": 8}},
    },
    "edges": [{"from": "expert", "to": "answerer", "channel": "cache", "fuser": "smollm2-135m-instruct--gemma-3-270m"}],
    "output": "answerer",
}


@pytest.mark.parametrize("reads", ["receiver-prompt", "own-prompt"])
def test_fused_edges_have_their_controls_and_a_fuser_for_the_same_model_makes_identical(
    tmp_path: Path, reads: str
) -> None:
    for sharer in ("gemma-3-270m", "smollm2-135m-instruct"):
        _fuser(tmp_path / f"smollm2-135m-instruct--{sharer}", sharer, reads)
    with Graph(folder=tmp_path, **DUO) as duo:
        found = compare(duo, ROWS[:2], variants=["cache", "mismatched", "zero", "sharer", "identical", "alone"])
    rows = {row.name: row for row in found.rows}
    assert {name: row.why_not for name, row in rows.items()} == dict.fromkeys(rows)
    assert [rows[name].cache_share for name in ("cache", "mismatched", "zero", "identical")] == [1.0] * 4
    values = {name: [each.scores for each in found.records_of(name)] for name in rows}
    assert len({str(each) for each in values.values()}) == 6  # each does something of its own
    fused = [found.records_of(name)[0].edges[0].report.positions_fused for name in ("cache", "zero")]
    assert fused[0] == fused[1] > 0


def _fuser(folder: Path, sharer: str, reads: str) -> None:
    from cachegraph.channels.fusers.files.card import Geometry
    from cachegraph.channels.fusers.files.weights import save_fuser
    from cachegraph.channels.fusers.networks.create import new_fuser

    small, gemma = Geometry(30, 3, 64), Geometry(18, 1, 256)
    theirs = gemma if sharer == "gemma-3-270m" else small
    fuser = new_fuser("c2c", small, theirs, names=("smollm2-135m-instruct", sharer), gate_logit=1.0, hidden_dim=32)
    card = fuser.card.model_copy(update={"reads": reads, "alignment": "offsets"})
    save_fuser(replace(fuser, card=card), folder)


def test_choices_of_a_plain_prompt_follow_it_after_a_space() -> None:
    plain = Graph(
        name="plain", models={"other": "gemma-3-270m"}, inputs={"question": {}},
        agents={"one": {"model": "other", "prompt": "Q: {{ question }}\nA:", "generate": {"max_new_tokens": 2}}},
        output="one",
    )  # fmt: skip
    choices = ["Paris", " Paris", "a small town"]
    with plain:
        found = compare(
            plain, [{"question": "The capital of France?", "choices": choices, "answer": 0}], variants=["alone"]
        )
    first, spaced, _ = found.records[0].scores
    assert (first.tokens, first.characters) == (1, 5)
    assert spaced.logprob == first.logprob
