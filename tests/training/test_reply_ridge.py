"""The closed-form start of a bottleneck fuser: against the normal equations, solved the long way on the same rows."""

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from pydantic import ValidationError

from cachegraph.channels.fusers.networks.translator import TranslatorNetwork
from cachegraph.errors import ConfigError, InputError
from cachegraph.training.networks.fuse import FuseLearner
from cachegraph.training.spec import FuseSpec
from cachegraph.training.train import train

from .conftest import Task, write_task

BOTTLENECK = {"architecture": "bottleneck", "params": {"rank": 16, "hidden": 0}}


def task(tmp_path: Path, folders: dict[str, Path], **fuser: Any) -> Task:
    return write_task(tmp_path, folders, "fuse", fuser={**BOTTLENECK, **fuser})


def started(found: Any) -> tuple[FuseLearner, TranslatorNetwork]:
    learner = cast("FuseLearner", found.learner)
    learner.start(found.train, lambda *_: None)
    return learner, cast("TranslatorNetwork", learner.module)


@pytest.mark.parametrize("positions", [1, 3])
def test_the_first_layer_is_the_ridge_map_to_the_replies_embeddings(
    tmp_path: Path, tiny_folders: dict[str, Path], positions: int
) -> None:
    with task(tmp_path, tiny_folders, ridge={"positions": positions, "penalty": 0.1}).open_training() as found:
        learner, network = started(found)
        goals = found.pair.receiver.engine.model.network.get_output_embeddings().weight.double()
        goals = goals - goals.mean(0)
        rank = min(16, goals.shape[1])
        xs, ys = [], []
        for example, features in zip(
            found.train, learner.caches.features([each.shared_prompt for each in found.train]), strict=True
        ):
            some = (features[-positions:].double() - network.mean) / network.deviation
            xs.append(some)
            ys.append(goals[example.replies.ids[example.replies.right][0]].expand(len(some), -1))
        x, y = torch.cat(xs), torch.cat(ys)
        x0, y0 = x - x.mean(0), y - y.mean(0)
        weights = torch.linalg.solve(x0.T @ x0 + 0.1 * len(x) * torch.eye(x.shape[1], dtype=x.dtype), x0.T @ y0)
        found_z = (x @ network.down.weight.double().T + network.down.bias.double())[:, :rank].detach()
        expected = x0 @ weights
        # The same map but for its scale and, where the bottleneck is narrower, the choice of axes: the same distances.
        scale = found_z.square().mean().sqrt()
        assert float(scale) == pytest.approx(1.0, abs=0.05)
        if rank == goals.shape[1]:
            torch.testing.assert_close(found_z, expected / expected.square().mean().sqrt(), rtol=1e-2, atol=1e-2)
        assert torch.count_nonzero(network.up.weight) == 0
        assert torch.count_nonzero(network.up.bias) == 0


def test_inputs_and_outputs_are_brought_to_one_scale_without_a_ridge(
    tmp_path: Path, tiny_folders: dict[str, Path]
) -> None:
    with task(tmp_path, tiny_folders).open_training() as found:
        before = found.learner.module.down.weight.clone()
        learner, network = started(found)
        features = torch.cat(learner.caches.features([each.shared_prompt for each in found.train]))
        torch.testing.assert_close(network.mean, features.mean(0))
        assert not torch.equal(network.scale, torch.ones_like(network.scale))
        assert torch.equal(network.down.weight, before)


def test_caches_of_frozen_models_are_computed_once(
    tmp_path: Path, tiny_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Any] = []
    from cachegraph.training.networks import prompt_caches
    from cachegraph.training.prefill import prefill

    def counted(*args: Any, **named: Any) -> Any:
        read.append(args)
        return prefill(*args, **named)

    monkeypatch.setattr(prompt_caches, "prefill", counted)
    with task(tmp_path, tiny_folders).open_training() as found, task(tmp_path, tiny_folders).open_training() as other:
        first, _ = found.learner.trees(found.train)
        count = len(read)
        second, _ = found.learner.trees(found.train)
        assert len(read) == count > 2
        other.learner.prepare(other.train, lambda *_: None)
        assert len(read) == count + 2  # all prompts at once, of each model
        third, _ = other.learner.trees(other.train)
        assert len(read) == count + 2
        for a, b, c in zip(first, second, third, strict=True):
            for left, right, apart in zip(a.segments, b.segments, c.segments, strict=True):
                assert all(torch.equal(x, y) for x, y in zip(left.tensors(), right.tensors(), strict=True))
                for x, y in zip(left.tensors(), apart.tensors(), strict=True):
                    torch.testing.assert_close(x, y)


def test_a_whole_training_with_it_makes_a_fuser(tmp_path: Path, tiny_folders: dict[str, Path]) -> None:
    spec = task(tmp_path, tiny_folders, ridge={"positions": 1}).spec()
    made = train(spec, folder=tmp_path)
    assert made.card.architecture == "bottleneck"
    assert made.card.kind == "fuse"
    assert made.card.sharer_layers == tuple(range(made.card.sharer.geometry.layers))


def test_a_joint_training_starts_its_fuser_too(tmp_path: Path, tiny_folders: dict[str, Path]) -> None:
    made = write_task(tmp_path, tiny_folders, "joint", fuser={"fuse": {**BOTTLENECK, "ridge": {}}})
    with made.open_training() as found:
        before = found.learner.module["fuse"].down.weight.clone()
        found.learner.start(found.train, lambda *_: None)
        network = found.learner.module["fuse"]
        assert not torch.equal(network.down.weight, before)
        assert network.down.weight in found.learner.learning_rate_scales()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "lean", "ridge": {}}, "ridge is not a setting of the architecture 'lean'"),
        ({"architecture": "bottleneck", "layer_map": "k_nearest"}, "layer_map is not a setting"),
        ({"architecture": "bottleneck", "anneal_steps": 3}, "anneal_steps is not a setting"),
        ({"architecture": "bottleneck", "rope": "rotated"}, "reads unrotated keys"),
        ({"architecture": "bottleneck", "ridge": {"positions": 0}}, "positions"),
    ],
)
def test_settings_of_another_architecture_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FuseSpec.model_validate(settings)


@pytest.mark.parametrize("kind", ["fuse", "graft", "joint"])
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("Anna sat.", 0), ("Anna sat.", 1), ("Anna sat.", 0)], "reads the same text in all training rows"),
        ([("Anna sat.", 0), ("Bela sat.", 0), ("Cora sat.", 0)], "have the same right answer"),
    ],
)
def test_rows_that_cannot_show_a_difference_are_refused(
    tmp_path: Path, tiny_folders: dict[str, Path], kind: str, rows: list[tuple[str, int]], message: str
) -> None:
    examples = [
        {"context": text, "question": "Who sat?", "choices": ["Anna", "Bela"], "answer": answer}
        for text, answer in rows
    ]
    made = write_task(tmp_path, tiny_folders, kind, rows=examples)
    dev = made.folder / "dev.jsonl"
    dev.write_text('{"context": "Zoe ran.", "question": "Who?", "choices": ["Zoe", "Al"], "answer": 0}\n')
    with pytest.raises(InputError, match=message):
        train(made.spec(data__dev="dev.jsonl"), folder=tmp_path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("Anna sat.", 0), ("Anna sat.", 1)], r"reads the same text in all dev rows \(2\)"),
        ([("Anna sat.", 0), ("Bela sat.", 0)], r"all dev rows \(2\) have the same right answer"),
    ],
)
def test_dev_rows_that_cannot_show_a_difference_are_refused(
    tmp_path: Path, tiny_folders: dict[str, Path], rows: list[tuple[str, int]], message: str
) -> None:
    made = write_task(tmp_path, tiny_folders, "graft")
    asked = {"question": "Who sat?", "choices": ["Anna", "Bela"]}
    lines = [json.dumps({"context": text, "answer": answer, **asked}) for text, answer in rows]
    (made.folder / "dev.jsonl").write_text("\n".join(lines))
    with pytest.raises(InputError, match=message):
        train(made.spec(data__dev="dev.jsonl"), folder=tmp_path)


def test_a_contrast_needs_two_texts_a_step(tmp_path: Path, tiny_folders: dict[str, Path]) -> None:
    made = task(tmp_path, tiny_folders)
    assert made.spec(loss__mismatched=1, optim__texts=2).loss.mismatched == 1
    with pytest.raises(ConfigError, match=r"set optim\.texts to 2 or more"):
        made.spec(loss__mismatched=1, optim__texts=1)
