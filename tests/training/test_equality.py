"""What a training computes is what the graph computes: the same choice log-probabilities, to float32's rounding."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from cachegraph import Graph, compare
from cachegraph.agents.base import Control, Delivery, Turn
from cachegraph.agents.local.agent import LocalAgent
from cachegraph.errors import ConfigError, InputError
from cachegraph.training.data.packed_replies import reply_logprobs
from cachegraph.training.networks.learner import Learner
from cachegraph.training.train import OpenedTraining, train

from .conftest import Task, story_rows, write_task

EXACT = 1e-4


def shaken(learner: Learner[Any]) -> None:
    """Random weights everywhere, so that nothing that starts at zero hides a difference; gates are open."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in learner.module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "gate_logit" in name:
                parameter.fill_(2.0)
            else:
                parameter.add_(noise * 0.1)
    learner.module.eval()


def trained_scores(
    found: OpenedTraining, examples: Sequence[Any], others: Sequence[Any] | None = None
) -> list[list[float]]:
    """By example, the log-probabilities of its choices as a training has them."""
    with torch.no_grad():
        trees, places = found.learner.trees(examples, others)
        flat = [each for tree in reply_logprobs(found.pair.receiver.engine.model, trees) for each in tree]
    return [flat[place].tolist() for place in places]


async def graph_scores(graph: Graph, rows: Sequence[dict[str, Any]], partners: Sequence[int]) -> list[list[float]]:
    """The same from the graph's own agents, with each row's partner's cache where that is another row."""
    reader, answerer = (await graph.awire()).nodes
    turns = []
    for row in rows:
        inputs = {name: row[name] for name in ("context", "question")}
        said = await reader.agent.turn(Turn(inputs, needs_text=False, needs_cache=True))
        turns.append(Turn(inputs, [Delivery(answerer.entries[0], said.payload)]))
    found = []
    for place, (row, turn, partner) in enumerate(zip(rows, turns, partners, strict=True)):
        control = None if partner == place else Control("mismatched", turns[partner])
        swapped = Turn(turn.inputs, turn.deliveries, control=control)
        judged = await cast("LocalAgent", answerer.agent).judge(swapped, row["choices"])
        assert [report.channel_used for report in judged.edges.values()] == ["cache"]
        found.append([score.logprob for score in judged.scores])
    return found


def assert_equal(mine: list[list[float]], theirs: list[list[float]]) -> None:
    assert len(mine) == len(theirs)
    for one, other in zip(mine, theirs, strict=True):
        assert one == pytest.approx(other, abs=EXACT)


async def check(task: Task, **settings: Any) -> None:
    """Own and mismatched caches; the fuser is the same folder to both."""
    rows = story_rows(8)
    (task.folder / "rows.jsonl").unlink()
    with write_rows(task, rows).open_training(data__dev="dev.jsonl", **settings) as found:
        examples = list(found.train)
        assert len(examples) == len(rows)
        shaken(found.learner)
        found.learner.save(task.folder / "made", {}, torch.float32)
        partners = [(place + 2) % len(rows) for place in range(len(rows))]
        own = trained_scores(found, examples)
        mismatched = trained_scores(found, examples, [examples[each] for each in partners])
    graph = Graph.from_yaml(task.folder / "graph.yaml", allow_paths=True)
    try:
        assert_equal(own, await graph_scores(graph, rows, range(len(rows))))
        assert_equal(mismatched, await graph_scores(graph, rows, partners))
    finally:
        await graph.aclose()
    assert all(one != pytest.approx(other, abs=1e-3) for one, other in zip(own, mismatched, strict=True))


def write_rows(task: Task, rows: Sequence[dict[str, Any]]) -> Task:
    """All of them to learn from, and another one to judge by."""
    (task.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    other = {"context": "Zoe sat.", "question": "Who?", "choices": ["Zoe", "Al"], "answer": 0}
    (task.folder / "dev.jsonl").write_text(json.dumps(other) + "\n")
    return task


PAIRS = [("small", "other"), ("plain", "other"), ("other", "plain"), ("other", "small")]


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize(("receiver", "sharer"), PAIRS)
async def test_a_translator_gives_the_graphs_scores(
    tmp_path: Path, tiny_folders: dict[str, Path], receiver: str, sharer: str
) -> None:
    await check(write_task(tmp_path, tiny_folders, "graft", receiver=receiver, sharer=sharer))


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_translator_learns_from_all_that_an_agent_hands_over_that_only_reads(
    tmp_path: Path, tiny_folders: dict[str, Path]
) -> None:
    """Its prompt, its own words in it, too."""
    await check(write_task(tmp_path, tiny_folders, "graft", reader={"generate": {"max_new_tokens": 0}}))


FUSERS: dict[str, dict[str, Any]] = {
    "c2c": {
        "architecture": "c2c",
        "params": {"hidden_dim": 8, "intermediate_dim": 8, "num_layers": 3},
        "alignment": "first",
    },
    "lean": {"params": {"width": 4}},
    "own": {"params": {"width": 4}, "reads": "own-prompt"},
    "shallow": {"params": {"width": 4}, "sharer_depth": 1, "layer_map": "k_nearest"},
    "rotated": {"params": {"width": 4}, "rope": "rotated", "alignment": "longest"},
    "bottleneck": {"architecture": "bottleneck", "params": {"rank": 8, "hidden": 4}},
    "shallow-bottleneck": {"architecture": "bottleneck", "params": {"rank": 8, "hidden": 0}, "sharer_depth": 2},
    "own-bottleneck": {"architecture": "bottleneck", "params": {"rank": 8}, "reads": "own-prompt"},
}


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize(
    ("fuser", "receiver", "sharer"),
    [(name, receiver, sharer) for name in FUSERS for receiver, sharer in PAIRS[:3]],
)
async def test_a_fuser_gives_the_graphs_scores(
    tmp_path: Path, tiny_folders: dict[str, Path], fuser: str, receiver: str, sharer: str
) -> None:
    await check(write_task(tmp_path, tiny_folders, "fuse", receiver=receiver, sharer=sharer, fuser=FUSERS[fuser]))


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_models_that_share_a_tokenizer_may_read_the_same_tokens(
    tmp_path: Path, tiny_folders: dict[str, Path]
) -> None:
    fuser = {"params": {"width": 4}, "alignment": "ids"}
    await check(write_task(tmp_path, tiny_folders, "fuse", sharer="twin", fuser=fuser))


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize(("receiver", "sharer"), PAIRS)
async def test_a_translator_and_a_fuser_of_one_edge_give_the_graphs_scores(
    tmp_path: Path, tiny_folders: dict[str, Path], receiver: str, sharer: str
) -> None:
    await check(write_task(tmp_path, tiny_folders, "joint", receiver=receiver, sharer=sharer))


def test_models_with_different_tokenizers_can_not_read_the_same_tokens(
    tmp_path: Path, tiny_folders: dict[str, Path]
) -> None:
    task = write_task(tmp_path, tiny_folders, "fuse", fuser={"alignment": "ids"})
    with pytest.raises(ConfigError, match="have different tokenizers; choose another alignment"), task.open_training():
        pass


def test_a_sharer_has_no_more_layers_than_it_has(tmp_path: Path, tiny_folders: dict[str, Path]) -> None:
    task = write_task(tmp_path, tiny_folders, "fuse")
    with pytest.raises(ConfigError, match="sharer_depth is 99, but .* has . layers"), \
            task.open_training(fuser__sharer_depth=99):  # fmt: skip
        pass


def test_agents_that_read_nothing_in_common_have_nothing_to_fuse(tmp_path: Path, tiny_folders: dict[str, Path]) -> None:
    task = write_task(tmp_path, tiny_folders, "graft")
    settings = {"fuser": {"kind": "fuse", "reads": "own-prompt"}}
    with pytest.raises(InputError, match="'reader' and 'answerer' read nothing in common.* kind 'graft'"), \
            task.open_training(**settings):  # fmt: skip
        pass


def test_a_comparison_finds_the_accuracy_that_the_dev_rows_were_judged_to_have(
    tmp_path: Path, tiny_folders: dict[str, Path]
) -> None:
    """Of a whole training, from its card: the graph that uses the fuser says the same."""
    task = write_rows(write_task(tmp_path, tiny_folders, "graft"), story_rows(8))
    others = [{"context": f"{name} sat.", "question": "Who?", "choices": ["Zoe", "Al"], "answer": place}
              for place, name in enumerate(("Zoe", "Al"))]  # fmt: skip
    (tmp_path / "others.jsonl").write_text("".join(json.dumps(row) + "\n" for row in others))
    made = train(task.spec(data__source="others.jsonl", data__dev="rows.jsonl", judge__rows=8, fuser__ridge=None,
                           optim__texts=1), folder=tmp_path)  # fmt: skip
    with Graph.from_yaml(tmp_path / "graph.yaml", allow_paths=True) as graph:
        found = compare(graph, tmp_path / "rows.jsonl", variants=["cache"])
    logprobs = [record.scores[row["answer"]].logprob for record, row in zip(found.records, story_rows(8), strict=True)]
    assert sum(logprobs) / 8 == pytest.approx(made.metrics["answer_logprob"], abs=EXACT)
    (shown,) = found.rows
    assert shown.examples == 8
