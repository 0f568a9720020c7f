"""What a killed training loses: nothing that its next run doesn't do again, to the last bit."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from forks import start
from killed_training import Moment, records, train_until_killed
from safetensors.torch import load_file, save_file

from cachegraph.channels.fusers.files.weights import WEIGHTS
from cachegraph.errors import CachegraphError, ConfigError, FuserError, InputError
from cachegraph.training import checkpoint
from cachegraph.training.checkpoint import CheckpointState
from cachegraph.training.loop import TrainingLoop
from cachegraph.training.plan import make_plan
from cachegraph.training.run_lock import locked_run
from cachegraph.training.train import train

from .conftest import Task, read_log, write_task

STEPS = 20
SETTINGS = {"optim__steps": STEPS, "judge__every": 4, "output": "killed"}

Whole = Callable[[], Path]


def whole(task: Task, **settings: Any) -> Path:
    """The same training undisturbed; returns its fuser's folder."""
    return train(task.spec(**{**SETTINGS, **settings, "output": "whole"}), folder=task.folder).folder


@pytest.fixture(scope="module")
def whole_graft(tmp_path_factory: pytest.TempPathFactory, tiny_folders: dict[str, Path]) -> Whole:
    """Call it for the fuser of `graft_task` whose training nothing disturbed, trained once."""
    return cache(lambda: whole(write_task(tmp_path_factory.mktemp("task"), tiny_folders, "graft")))


def assert_same(task: Task, undisturbed: Path) -> None:
    ours, theirs = (read_log(made.with_name(f"{made.name}.training")) for made in (task.folder / "killed", undisturbed))
    assert ours == theirs
    mine, other = (load_file(made / WEIGHTS) for made in (task.folder / "killed", undisturbed))
    assert mine.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in mine.items())
    assert len([each for each in ours if each["kind"] == "step"]) == STEPS


@pytest.mark.parametrize("kind", ["graft", "fuse"])
def test_a_training_that_is_killed_again_and_again_ends_as_if_nothing_had_been(
    tmp_path: Path, tiny_folders: dict[str, Path], kind: str
) -> None:
    task = write_task(tmp_path, tiny_folders, kind)
    run = tmp_path / "killed.training"
    undisturbed = whole(task)
    deaths: list[tuple[int, Moment]] = [(2, "after"), (9, "half"), (16, "before")]
    for record, moment in deaths:
        begun = {"folder": tmp_path, "resume": checkpoint.newest(run) is not None}
        process = start(train_until_killed, record, moment, task.spec(**SETTINGS), **begun)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert records(run) >= record - 1
        assert not (tmp_path / "killed").exists()
    train(task.spec(**SETTINGS), folder=tmp_path, resume=True)
    assert_same(task, undisturbed)


def interrupt(monkeypatch: pytest.MonkeyPatch, name: str, call: int, *, after: bool = False) -> None:
    """Ctrl-C at the `call`th call of this method of the loop, as it begins or as it ends."""
    plain, calls = getattr(TrainingLoop, name), []

    def method(self: TrainingLoop, *arguments: Any) -> Any:
        calls.append(1)
        if after:
            found = plain(self, *arguments)
        if len(calls) == call:
            signal.raise_signal(signal.SIGINT)
        return found if after else plain(self, *arguments)

    monkeypatch.setattr(TrainingLoop, name, method)


@pytest.mark.parametrize(
    ("name", "call", "after"),
    [("evaluate", 1, True), ("evaluate", 3, False), ("evaluate", 6, False), ("step", 6, False),
     ("step", 8, True), ("_gradients", 7, True), ("_save", 2, False)],
)  # fmt: skip
def test_ctrl_c_anywhere_is_gone_on_from(
    graft_task: Task,
    whole_graft: Whole,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    call: int,
    after: bool,
) -> None:
    spec = graft_task.spec(**SETTINGS)
    with monkeypatch.context() as patch:
        interrupt(patch, name, call, after=after)
        with pytest.raises(KeyboardInterrupt):
            train(spec, folder=graft_task.folder)
    found = checkpoint.newest(graft_task.folder / "killed.training")
    assert found is not None
    train(spec, folder=graft_task.folder, resume=True)
    assert_same(graft_task, whole_graft())


def test_ctrl_c_while_the_weights_move_waits_for_the_end_of_the_step(
    graft_task: Task, whole_graft: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, calls = torch.optim.AdamW.step, []

    def step(self: Any, *arguments: Any) -> Any:
        calls.append(1)
        found = plain(self, *arguments)
        if len(calls) == 5:
            signal.raise_signal(signal.SIGINT)
        return found

    spec = graft_task.spec(**SETTINGS)
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        with pytest.raises(KeyboardInterrupt):
            train(spec, folder=graft_task.folder)
    found = checkpoint.newest(graft_task.folder / "killed.training")
    assert found is not None
    assert found[1].step == 5
    train(spec, folder=graft_task.folder, resume=True)
    assert_same(graft_task, whole_graft())


def stopped(task: Task, monkeypatch: pytest.MonkeyPatch, step: int = 14) -> list[Path]:
    """Interrupt a training behind this step; returns its checkpoints, the newest first."""
    with monkeypatch.context() as patch:
        interrupt(patch, "step", step, after=True)
        with pytest.raises(KeyboardInterrupt):
            train(task.spec(**SETTINGS), folder=task.folder)
    return sorted((task.folder / "killed.training").glob("step-*"), reverse=True)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("name", "damage"),
    [("weights.safetensors", cut), ("weights.safetensors", flip), ("optimizer.safetensors", cut),
     ("state.json", cut), ("state.json", Path.unlink), ("optimizer.safetensors", Path.unlink)],
)  # fmt: skip
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    graft_task: Task,
    whole_graft: Whole,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    damage: Callable[[Path], None],
) -> None:
    newest, older = stopped(graft_task, monkeypatch)
    damage(newest / name)
    found = checkpoint.newest(newest.parent)
    assert found is not None
    assert (found[0], found[1].step) == (older, 12)
    if damage is cut:
        train(graft_task.spec(**SETTINGS), folder=graft_task.folder, resume=True)
        assert_same(graft_task, whole_graft())


def test_only_the_last_two_checkpoints_stay_and_no_halves(graft_task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    run = graft_task.folder / "killed.training"
    (run / ".step-half").mkdir(parents=True)
    newest, older = stopped(graft_task, monkeypatch)
    assert [newest.name, older.name] == ["step-000014", "step-000012"]
    assert sorted(path.name for path in run.iterdir()) == ["best", "log.jsonl", older.name, newest.name]


def refused(task: Task, error: type[CachegraphError], words: Sequence[str], **options: Any) -> None:
    settings = {**SETTINGS, **options.pop("settings", {})}
    with pytest.raises(error) as raised:
        train(task.spec(**settings), folder=task.folder, **options)
    for each in words:
        assert each in str(raised.value)


def test_what_can_not_be_gone_on_from_is_refused_with_the_remedy(
    graft_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(graft_task, FuserError, ["no whole checkpoint", "killed.training", "--restart"], resume=True)
    newest, older = stopped(graft_task, monkeypatch)
    other = {"optim__learning_rate": 0.5}
    refused(graft_task, ConfigError, ["of another recipe", "--restart"], resume=True, settings=other)
    refused(graft_task, ConfigError, ["training at step 14", "--resume", "--restart", "another output"])
    for folder in (newest, older):
        cut(folder / "state.json")
    refused(graft_task, ConfigError, ["none of them whole", "--restart"])
    refused(graft_task, FuserError, ["no whole checkpoint"], resume=True)


def test_a_restart_forgets_what_was(graft_task: Task, whole_graft: Whole, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it is interrupted before it gets as far as the first one."""
    stopped(graft_task, monkeypatch, step=18)
    with monkeypatch.context() as patch:
        interrupt(patch, "step", 6, after=True)
        with pytest.raises(KeyboardInterrupt):
            train(graft_task.spec(**SETTINGS), folder=graft_task.folder, restart=True)
    found = checkpoint.newest(graft_task.folder / "killed.training")
    assert found is not None
    assert found[1].step == 6
    train(graft_task.spec(**SETTINGS), folder=graft_task.folder, resume=True)
    assert_same(graft_task, whole_graft())


def test_what_does_not_decide_the_loss_may_change_in_between(graft_task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(graft_task, monkeypatch)
    made = train(graft_task.spec(**SETTINGS, licence="CC0"), folder=graft_task.folder, resume=True)
    assert made.card.licence in ("CC0", None)  # of the step that was best
    assert made.steps == STEPS


def test_a_checkpoint_of_another_network_is_refused(graft_task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    newest, _ = stopped(graft_task, monkeypatch)
    network = torch.nn.Linear(2, 2)
    with pytest.raises(FuserError, match="is not of this fuser .*; start over"):
        checkpoint.restore(newest, network, torch.optim.AdamW(network.parameters()))


def optimizer_of(*groups: torch.nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW([{"params": list(group.parameters())} for group in groups])


def test_the_optimizers_numbers_go_by_the_parameters_names_not_by_their_order(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    optimizer = optimizer_of(network[0], network[1])
    network(torch.randn(4, 3)).square().sum().backward()
    optimizer.step()
    kept = checkpoint.save(tmp_path, CheckpointState(recipe="r", step=1), network, optimizer)
    other = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    turned = optimizer_of(other[1], other[0])
    checkpoint.restore(kept, other, turned)
    for name, weights in network.named_parameters():
        for number, value in optimizer.state[weights].items():
            assert torch.equal(turned.state[other.get_parameter(name)][number], value), (name, number)


def test_a_checkpoint_whose_optimizers_numbers_have_no_names_is_refused(
    graft_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they once were written: by a place in an order that has changed."""
    newest, _ = stopped(graft_task, monkeypatch)
    numbers = load_file(newest / checkpoint.OPTIMIZER)
    save_file(
        {f"{place}.exp_avg": value for place, value in enumerate(numbers.values())}, newest / checkpoint.OPTIMIZER
    )
    state = json.loads((newest / checkpoint.STATE).read_text())
    state["sha256"][checkpoint.OPTIMIZER] = sha256((newest / checkpoint.OPTIMIZER).read_bytes()).hexdigest()
    (newest / checkpoint.STATE).write_text(json.dumps(state))
    refused(graft_task, FuserError, ["is not of this fuser", "start over"], resume=True)


def test_two_trainings_never_write_to_one_folder(
    graft_task: Task, whole_graft: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = graft_task.folder / "killed.training"
    seen: list[bytes] = []

    def step(self: TrainingLoop) -> Any:
        if not seen:
            seen.append((run / "log.jsonl").read_bytes())
            for options in ({}, {"resume": True}, {"restart": True}):
                refused(graft_task, InputError, [repr(str(run)), "another command", "another output"], **options)
            with pytest.raises(InputError, match="another command"):
                make_plan(graft_task.spec(**SETTINGS), graft_task.folder, graft_task.folder, restart=True)
            assert (run / "log.jsonl").read_bytes() == seen[0]
        return plain(self)

    plain = TrainingLoop.step
    monkeypatch.setattr(TrainingLoop, "step", step)
    train(graft_task.spec(**SETTINGS), folder=graft_task.folder)
    assert seen
    assert_same(graft_task, whole_graft())


def test_a_killed_trainings_lock_is_free_and_a_refused_one_leaves_no_folder(tmp_path: Path) -> None:
    run = tmp_path / "made.training"
    code = "import os, sys; from pathlib import Path; from cachegraph.training.run_lock import locked_run\n"
    code += "with locked_run(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    killed = subprocess.run([sys.executable, "-c", code, str(run)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert run.exists()
    with locked_run(run), pytest.raises(InputError, match="another command"), locked_run(run):
        pass
    assert not run.exists()


def test_many_trainings_that_begin_at_once_exclude_each_other(tmp_path: Path) -> None:
    inside: list[int] = []
    most: list[int] = []

    def begin(number: int) -> int:
        try:
            with locked_run(tmp_path / "made.training"):
                inside.append(number)
                most.append(len(inside))
                inside.remove(number)
        except InputError:
            return 0
        return 1

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(begin, range(400))) > 0
    assert max(most) == 1


def test_a_log_that_leads_nowhere_is_told(tmp_path: Path) -> None:
    (tmp_path / "made.training").mkdir()
    (tmp_path / "made.training" / "log.jsonl").symlink_to(tmp_path / "none" / "log.jsonl")
    with pytest.raises(FuserError, match="can't be written"), locked_run(tmp_path / "made.training"):
        pass
