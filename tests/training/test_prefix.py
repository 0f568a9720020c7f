"""The tuned control: a trained prefix of the receiver, which reads the sharer's text as words."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cachegraph import Graph, compare
from cachegraph.channels.fusers.files.load import load_fuser
from cachegraph.channels.fusers.files.weights import read_prefix
from cachegraph.channels.fusers.inventory import describe
from cachegraph.errors import ConfigError, FuserError, InputError
from cachegraph.training.train import train

from .conftest import Task, read_log, story_rows, write_task
from .test_equality import EXACT, shaken, trained_scores, write_rows
from .test_loop import loop, of


@pytest.fixture
def task(tmp_path: Path, tiny_folders: dict[str, Path]) -> Task:
    return write_rows(write_task(tmp_path, tiny_folders, "graft", edge={"fallback": "text"}), story_rows(8))


def scores_of(task: Task, variant: str, rows: list[dict[str, Any]]) -> list[list[float]]:
    with Graph.from_yaml(task.folder / "graph.yaml", allow_paths=True) as graph:
        found = compare(graph, rows, variants=[variant])
    assert [row.why_not for row in found.rows] == [None]
    return [[score.logprob for score in record.scores] for record in found.records]


@pytest.mark.parametrize(("receiver", "sharer"), [("small", "other"), ("plain", "other"), ("other", "small")])
def test_a_trained_prefix_gives_a_comparisons_scores(
    tmp_path: Path, tiny_folders: dict[str, Path], receiver: str, sharer: str
) -> None:
    """Prompts with common beginnings are computed once in a training, and each alone in a run."""
    made = write_task(tmp_path, tiny_folders, "graft", receiver=receiver, sharer=sharer, edge={"fallback": "text"})
    task, rows = write_rows(made, story_rows(8)), story_rows(8)
    with task.open_training(control="tuned", data__dev="dev.jsonl") as found:
        found.learner.start(found.train, lambda *_: None)
        shaken(found.learner)
        found.learner.save(task.folder / "prefix", {}, torch.float32)
        own = trained_scores(found, found.train)
        partners = [(place + 2) % len(rows) for place in range(len(rows))]
        mismatched = trained_scores(found, found.train, [found.train[each] for each in partners])
    graph = scores_of(task, "tuned@./prefix", rows)
    others = [{**row, "context": rows[partner]["context"]} for row, partner in zip(rows, partners, strict=True)]
    for mine, scores in ((own, graph), (mismatched, scores_of(task, "tuned@./prefix", others))):
        assert [x for each in mine for x in each] == pytest.approx([x for each in scores for x in each], abs=EXACT)
    ceiling = scores_of(task, "ceiling", rows)
    assert all(one != pytest.approx(other, abs=1e-3) for one, other in zip(graph, ceiling, strict=True))


def test_its_loss_falls_and_it_has_about_as_many_parameters_as_the_translator(task: Task) -> None:
    with task.open_training() as found:
        translator = sum(p.numel() for p in found.learner.module.parameters())
    settings = {"control": "tuned", "optim__steps": 30, "optim__texts": 3, "loss__mismatched": 0.1}
    with task.open_training(**settings) as found:
        network = found.learner.module
        assert abs(network.entries.numel() - translator) <= network.entries.shape[1] / 2
        going = loop(found, task.folder / "run")
        going.start()
        going.finish()
    loss = of("step", read_log(task.folder / "run"), "loss")
    assert sum(loss[-5:]) < 0.8 * sum(loss[:5])


def test_a_training_writes_it_with_a_card_that_says_what_it_is(task: Task) -> None:
    made = train(task.spec(control="tuned", output="tuned"), folder=task.folder)
    card = made.card
    assert (card.kind, card.sharer, card.sharer_layers) == ("prefix", card.receiver, ())
    assert "control 'tuned': not for use" in str(card.trained_on)
    assert card.params == {"positions": len(read_prefix(made.folder))}
    assert describe(made.folder).parameters == read_prefix(made.folder).parameter_count
    with task.open_training() as found:
        found.learner.save(task.folder / "made", {}, torch.float32)
    with Graph.from_yaml(task.folder / "graph.yaml", allow_paths=True) as graph:
        compared = compare(graph, story_rows(8), variants=["cache", "mismatched", "ceiling", "tuned@./tuned", "floor"])
    assert any("in the training data of the fuser 'tuned@./tuned'" in each for each in compared.warnings)
    assert compared.difference("cache", "tuned@./tuned") is not None
    assert compared.difference("ceiling", "tuned@./tuned") is None
    assert any("tuned@./tuned" in each for each in compared.verdicts)


def test_a_joint_training_has_one_prefix_for_both_networks(tmp_path: Path, tiny_folders: dict[str, Path]) -> None:
    task = write_task(tmp_path, tiny_folders, "joint", control="tuned")
    (card,) = train(task.spec(), folder=task.folder).cards
    assert card.kind == "prefix"


def test_only_a_trained_prefix_of_the_receivers_model_can_be_in_front(
    task: Task, tiny_folders: dict[str, Path]
) -> None:
    with task.open_training(control="tuned") as found:
        found.learner.save(task.folder / "prefix", {}, torch.float32)
    with task.open_training() as found:
        found.learner.save(task.folder / "translator", {}, torch.float32)
    with pytest.raises(FuserError, match="is a trained prefix, a control of comparisons, which joins no two models"):
        load_fuser(task.folder / "prefix")
    with Graph.from_yaml(task.folder / "graph.yaml", allow_paths=True) as graph:
        for name, said in (
            ("tuned", "needs the folder of a trained prefix, as in tuned@FOLDER"),
            ("tuned@mean", "needs the folder of a trained prefix"),
            ("tuned@./translator", "is a fuser; train a prefix with --control tuned"),
            ("tuned@./nothing", "can't run: there is no fuser"),
        ):
            with pytest.raises(InputError, match=said):
                compare(graph, story_rows(8), variants=[name])
        found = compare(graph, story_rows(8), variants=["ceiling", "cache@./prefix"])
    assert "is a trained prefix" in str(found.rows[1].edges[0].fallbacks)
    other = write_task(task.folder / "other", tiny_folders, "graft", receiver="twin", edge={"fallback": "text"})
    with Graph.from_yaml(other.folder / "graph.yaml", allow_paths=True) as graph:
        found = compare(graph, story_rows(8), variants=["ceiling", f"tuned@{task.folder / 'prefix'}"])
    assert "can't precede a prompt of 'twin': it was trained for 'small'" in str(found.rows[1].why_not)


def test_a_prefix_longer_than_the_rows_or_the_model_is_refused(task: Task) -> None:
    few = json.dumps(story_rows(4)[0]) + "\n" + json.dumps(story_rows(4)[2]) + "\n"
    (task.folder / "rows.jsonl").write_text(few)
    short = r"the training rows have \d+ tokens, but the prefix starts from \d+; give more rows, or a smaller network"
    with task.open_training(control="tuned", fuser__rank=60, data__dev="dev.jsonl") as found, \
            pytest.raises(InputError, match=short):  # fmt: skip
        found.learner.start(found.train, lambda *_: None)
    for rank, error, said in (
        (140, InputError, r"line 1: the prompt of agent 'answerer' has \d+ tokens behind a prefix of 4\d\d and"),
        (
            2000,
            ConfigError,
            "as many parameters as the recipe's network has .* positions, but 'small' reads at most 512",
        ),
    ):
        with pytest.raises(error, match=said), \
                task.open_training(control="tuned", fuser__rank=rank, data__dev="dev.jsonl"):  # fmt: skip
            pass
