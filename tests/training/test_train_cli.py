"""`cachegraph train` as people meet it: what it writes, what it prints, and what it says of a wrong word."""

import json
import math
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from accelerate.utils import is_tensorboard_available
from forks import Command
from free_port import lasting_port
from killed_training import records
from waiting import wait_until

from cachegraph import Graph
from cachegraph.channels.fusers.files.weights import read_card
from cachegraph.cli import main
from cachegraph.training import checkpoint
from cachegraph.training.train import train

from .conftest import Task, story_rows, write_task


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


Call = Callable[..., Ended]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Call it with arguments to run `cachegraph train` here."""

    def run(*arguments: str | Path) -> Ended:
        monkeypatch.setattr(sys, "argv", ["cachegraph", "train", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return Ended(int(ended.value.code or 0), *capsys.readouterr())

    return run


def files(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*")}


def test_a_recipe_becomes_a_fuser_and_the_outcome_is_said(graft_task: Task, call: Call) -> None:
    done = call(graft_task.recipe)
    assert done.code == 0, done.err
    first, *metrics = done.out.splitlines()
    assert first.startswith(f"{graft_task.folder / 'made'}: 6 steps in ")
    assert {line.split()[0] for line in metrics} >= {"rows", "accuracy", "accuracy_mismatched", "answer_logprob"}
    assert "step 0: " in done.err
    assert "step 6: " in done.err
    assert "(kept)" in done.err
    assert read_card(graft_task.folder / "made").kind == "graft"
    again = call(graft_task.recipe)
    assert again.code == 3
    assert "training at step 6; continue it with --resume" in again.err
    assert call(graft_task.recipe, "--restart").code == 0
    assert call(graft_task.recipe, "--resume").code == 0


def test_json_is_the_outcome_and_nothing_else(graft_task: Task, call: Call) -> None:
    found = json.loads(call(graft_task.recipe, "--json", "-o", graft_task.folder / "elsewhere").out)
    assert (found["fuser"], found["steps"]) == (str(graft_task.folder / "elsewhere"), 6)
    assert set(found["metrics"]) >= {"accuracy", "answer_logprob"}
    assert found["seconds"] > 0


def test_options_and_settings_change_the_recipe(graft_task: Task, call: Call) -> None:
    done = call(
        graft_task.recipe, "--steps", "2", "--seed", "7", "--set", "fuser.rank=3", "--set", "fuser.ridge=null",
        "--set", "licence=CC0", "--control", "zero", "--json",
    )  # fmt: skip
    assert json.loads(done.out)["steps"] == 2
    card = read_card(graft_task.folder / "made")
    assert (card.params["rank"], card.licence, card.metrics["seed"]) == (3, "CC0", 7)
    assert "control 'zero': not for use" in str(card.trained_on)


SMALLER = {
    "graft": ("--set", "fuser.rank=4", "--set", "fuser.hidden=4"),
    "fuse": ("--set", "fuser.params.width=4"),
    "joint": ("--set", "fuser.graft.rank=4", "--set", "fuser.graft.hidden=4", "--set", "fuser.fuse.params.width=4"),
}


@pytest.mark.parametrize("kind", ["graft", "fuse", "joint"])
@pytest.mark.parametrize("named", [None, "story", "./made"])
def test_a_graph_needs_no_recipe(
    kind: str,
    named: str | None,
    tmp_path: Path,
    tiny_folders: dict[str, Path],
    call: Call,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kind is what the edge needs, and the fuser goes where the graph will look for it."""
    task = write_task(tmp_path / "task", tiny_folders, kind, edge={"fuser": named})
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    done = call("--for", "../task/graph.yaml", "--edge", "reader:answerer", "--data", "../task/rows.jsonl",
                "--steps", "1", "--json", *SMALLER[kind])  # fmt: skip
    assert done.code == 0, done.err
    fuser = Path(json.loads(done.out)["fuser"])
    shelf = tmp_path / "home" / "fusers"
    assert fuser == {None: shelf / "small--other", "story": shelf / "story", "./made": task.folder / "made"}[named]
    if kind == "joint":
        assert [read_card(fuser / part).kind for part in ("fuse", "graft")] == ["fuse", "graft"]
        assert read_card(fuser / "fuse").reads == "own-prompt"
    else:
        assert read_card(fuser).kind == kind
    recipe = task.folder / "graph.yaml"
    if named is None:  # nothing is used that nobody names, until its card shows that it communicates
        recipe.write_text(recipe.read_text() + "fusers: [small--other]\n")
    with Graph.from_yaml(recipe, allow_paths=True) as graph:
        ran = graph.run(context="Ann saw a key on day 3.", question="Which day?")
    assert ran.edges["reader", "answerer"].channel_used == "cache"
    assert not files(tmp_path / "work")


def test_a_control_is_never_called_what_the_graph_looks_for(
    tmp_path: Path, tiny_folders: dict[str, Path], call: Call
) -> None:
    task = write_task(tmp_path / "task", tiny_folders, "graft", edge={"fuser": "story"})
    done = call("--for", task.folder / "graph.yaml", "--data", task.folder / "rows.jsonl", "--steps", "1",
                "--control", "zero", "--json", *SMALLER["graft"])  # fmt: skip
    assert done.code == 0, done.err
    assert Path(json.loads(done.out)["fuser"]) == tmp_path / "home" / "fusers" / "story--zero"


def test_a_dry_run_says_what_it_takes_and_writes_nothing(graft_task: Task, call: Call, tmp_path: Path) -> None:
    before = files(graft_task.folder)
    found = json.loads(call(graft_task.recipe, "--dry-run", "--json").out)
    assert files(graft_task.folder) == before
    kept = {path.name for path in (tmp_path / "home").glob("*")}
    assert kept <= {"checks", "kernels", "tokenizers"}  # what every load keeps of the models, and what was compiled
    inner, outer = 3 * 2 * 2 * 16, 3 * 2 * 2 * 8
    network = 6 * (inner + 1) + outer * 7 + (2 * 6) + 4 * 7 + 6 * 5 + 1
    assert found["parameters"] == network
    assert (found["training_bytes"], found["fuser_bytes"]) == (16 * network, 4 * network)
    assert (found["rows"], found["dev_rows"], found["texts"], found["steps"]) == (18, 6, 9, 6)
    assert found["seconds"] == pytest.approx(6 * found["seconds_a_step"])
    assert found["model_bytes"] > 0
    assert found["fuser"] == str(graft_task.folder / "made")
    shown = call(graft_task.recipe, "--dry-run").out
    for word in ("parameters", "memory", "time", "6 steps of", "18 about 9 texts, 6 for dev"):
        assert word in shown


WRONG: list[tuple[Callable[[dict[str, Any]], None], str, str]] = [
    (lambda recipe: recipe["optim"].update(lerning_rate=1), "lerning_rate", "did you mean 'learning_rate'"),
    (lambda recipe: recipe["fuser"].update(rnk=1), "rnk", "did you mean 'rank'"),
    (lambda recipe: recipe.update(dat=1), "dat", "did you mean 'data'"),
    (lambda recipe: recipe["optim"].update(steps=0), "0", "'steps': input should be greater than 0"),
    (
        lambda recipe: recipe.update(control="zeros"),
        "zeros",
        "'control': input should be 'none', 'identical', 'zero' or 'tuned'",
    ),
    (lambda recipe: recipe["data"].update(dev=1.5), "1.5", "'dev': a fraction of the texts must be between 0 and 1"),
]


@pytest.mark.parametrize(("change", "at", "message"), WRONG)
def test_what_is_wrong_in_a_recipe_is_said_with_its_place(
    graft_task: Task, call: Call, change: Callable[[dict[str, Any]], None], at: str, message: str
) -> None:
    recipe = yaml.safe_load(graft_task.recipe.read_text())
    change(recipe)
    text = yaml.safe_dump(recipe, sort_keys=False)
    graft_task.recipe.write_text(text)
    done = call(graft_task.recipe)
    assert done.code == 2
    assert message in done.err
    (place,) = [(i, found.start(1)) for i, line in enumerate(text.splitlines(), 1)
                if (found := re.search(rf"(?:^|\s)({re.escape(at)})(?::|$)", line))]  # fmt: skip
    assert done.err.startswith(f"cachegraph: {graft_task.recipe}:{place[0]}:{place[1] + 1}: ")


def test_everything_that_is_wrong_in_a_recipe_is_said_at_once(graft_task: Task, call: Call) -> None:
    recipe = yaml.safe_load(graft_task.recipe.read_text())
    del recipe["for"]
    graft_task.recipe.write_text(yaml.safe_dump({**recipe, "edge": "reader", "sed": 1}))
    done = call(graft_task.recipe)
    assert "the key 'for' is missing" in done.err
    assert "unknown key 'sed'; did you mean 'seed'" in done.err
    graft_task.recipe.write_text(yaml.safe_dump({**recipe, "for": "graph.yaml", "edge": "reader"}))
    assert "edge is written sender:receiver, not 'reader'" in call(graft_task.recipe).err
    graft_task.recipe.write_text("- 1")
    assert "a training recipe is a mapping of keys to values" in call(graft_task.recipe).err


def rows(task: Task, *made: dict[str, Any]) -> None:
    (task.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))


LONG = {**story_rows(2)[0], "context": "so it went on " * 200}


def test_rows_that_can_not_be_learnt_from_are_named(graft_task: Task, call: Call) -> None:
    rows(graft_task)
    done = call(graft_task.recipe)
    assert (done.code, "'rows.jsonl' has no rows" in done.err) == (2, True)
    rows(graft_task, *story_rows(4), {"context": "x", "question": "y", "choices": ["a", "b"], "answer": 5})
    done = call(graft_task.recipe)
    assert done.code == 2
    assert "rows.jsonl, line 5" in done.err
    rows(graft_task, *story_rows(4), LONG, LONG)
    done = call(graft_task.recipe)
    assert done.code == 2
    assert "2 of 6 training rows can't be used: rows.jsonl, line 5: the prompt of agent 'answerer' has" in done.err
    assert "reads at most 512; drop long examples, or shorten them" in done.err
    assert not graft_task.run.exists()


def test_a_few_rows_that_are_too_long_are_left_out(graft_task: Task, call: Call) -> None:
    rows(graft_task, *story_rows(24), LONG)
    found = json.loads(call(graft_task.recipe, "--dry-run", "--json").out)
    assert found["rows"] + found["dev_rows"] == 24


def test_an_edge_without_a_private_text_has_nothing_to_graft(
    tmp_path: Path, tiny_folders: dict[str, Path], call: Call
) -> None:
    task = write_task(tmp_path, tiny_folders, "fuse", fuser={})
    recipe = {**yaml.safe_load(task.recipe.read_text()), "fuser": {"kind": "graft", "rank": 4}}
    task.recipe.write_text(yaml.safe_dump(recipe))
    done = call(task.recipe)
    assert done.code == 2
    assert (
        "nothing that 'answerer' does not read itself, so there is nothing to graft; train a fuser of kind" in done.err
    )


REFUSED: list[tuple[list[str], int, str]] = [
    ([], 3, "name a training recipe, or a graph with --for and --data; for example: cachegraph train"),
    (["R", "--for", "G"], 3, "name a training recipe, or a graph"),
    (["--for", "G"], 3, "--for needs --data"),
    (["--for", "G", "--data", "D", "--kind", "grft"], 3, "kind is 'fuse', 'graft' or 'joint', not 'grft'"),
    (["--for", "G", "--data", "D", "--edge", "a:b"], 3, "no edge 'a:b'; it has reader:answerer"),
    (["R", "--set", "optim.steps"], 3, "--set needs KEY=VALUE, got 'optim.steps'"),
    (["R", "--set", "optm.steps=1"], 3, "has no key 'optm.steps'"),
    (["R", "--set", "optim.step=1"], 3, "optim.step"),
    (["R", "--set", "optim.steps=no"], 3, "optim.steps"),
    (["R", "--control", "identcal"], 3, "control"),
    (["R", "--resume"], 1, "no whole checkpoint"),
    (["R", "--track", "tensorbord"], 3, "there is no tracker 'tensorbord'; there are 'tensorboard', 'wandb'"),
    (["none.yaml"], 2, "none.yaml"),
    (["R", "--data", "none.jsonl"], 2, "none.jsonl"),
    (["R", "--set", "fuser.layers=[7]"], 1, "the sharer has 3 layers"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), REFUSED)
def test_what_is_asked_wrongly_is_refused_in_a_sentence(
    graft_task: Task, call: Call, arguments: list[str], code: int, message: str
) -> None:
    named = {"R": graft_task.recipe, "G": graft_task.folder / "graph.yaml", "D": graft_task.folder / "rows.jsonl"}
    before = files(graft_task.folder)
    done = call(*(named.get(each, each) for each in arguments))
    assert (done.code, done.out) == (code, "")
    assert message in done.err
    assert "Traceback" not in done.err
    assert "should not have happened" not in done.err
    assert files(graft_task.folder) == before


@pytest.mark.skipif(not is_tensorboard_available(), reason="tensorboard is not installed")
def test_tensorboard_gets_every_step_and_judgement(graft_task: Task, call: Call) -> None:
    done = call(graft_task.recipe, "--track", "tensorboard")
    assert done.code == 0, done.err
    events = list((graft_task.folder / "tiny.runs").rglob("events.out.tfevents.*"))
    assert events
    written = b"".join(each.read_bytes() for each in events)
    for tag in (b"train/loss", b"train/learning_rate", b"dev/accuracy", b"dev/answer_logprob_mismatched"):
        assert tag in written


def test_a_place_that_can_not_be_written_to_is_said(graft_task: Task, call: Call) -> None:
    (graft_task.folder / "file").write_text("no folder")
    done = call(graft_task.recipe, "-o", graft_task.folder / "file" / "made")
    assert done.code == 3
    assert "can't be written" in done.err
    assert "should not have happened" not in done.err


def test_a_training_that_fails_leaves_the_fuser_that_is_there(graft_task: Task, call: Call) -> None:
    assert call(graft_task.recipe).code == 0
    before = read_card(graft_task.folder / "made")
    wild = call(graft_task.recipe, "--restart", "--set", "optim.learning_rate=1e30")
    assert wild.code == 1
    assert "lower the learning rate" in wild.err
    rows(graft_task)
    assert call(graft_task.recipe, "--restart").code == 2
    assert checkpoint.newest(graft_task.run) is not None  # nothing is thrown away for a training that can't begin
    assert read_card(graft_task.folder / "made") == before


def test_ctrl_c_leaves_a_checkpoint_and_ends_with_130(graft_task: Task) -> None:
    command = Command("train", graft_task.recipe, "--steps", "100000", folder=graft_task.folder / "streams")
    try:
        wait_until(lambda: records(graft_task.run) > 5 or not command.is_alive(), 150)
        command.send_signal(signal.SIGINT)
        done = command.end(60)
    finally:
        command.kill()
    assert (done.returncode, done.stdout) == (130, "")
    assert "interrupted; the same command with --resume continues from the last step" in done.stderr
    assert "Traceback" not in done.stderr
    found = checkpoint.newest(graft_task.run)
    assert found is not None
    step = found[1].step
    steps = [each for each in graft_task.log() if each["kind"] == "step"]
    assert step == len(steps) >= 3


def test_ctrl_c_before_the_first_step_promises_nothing(graft_task: Task) -> None:
    recipe = yaml.safe_load(graft_task.recipe.read_text())
    os.mkfifo(graft_task.folder / "slow.jsonl")  # whoever reads it waits
    graft_task.recipe.write_text(yaml.safe_dump({**recipe, "data": {"source": "slow.jsonl"}}))
    command = Command("train", graft_task.recipe, folder=graft_task.folder / "streams")
    with (graft_task.folder / "slow.jsonl").open("w"):  # which opens once it is read
        command.send_signal(signal.SIGINT)
        done = command.end(60)
    assert (done.returncode, done.stdout) == (130, "")
    assert "interrupted; no step was taken yet, so nothing was saved: run the same command again" in done.stderr
    assert "Traceback" not in done.stderr
    assert not graft_task.run.exists()


@contextmanager
def launched(*tasks: Task, options: Sequence[str] = ()) -> Iterator[list[Command]]:
    """A process for each of these, as a launcher starts them: its environment says which one it is."""
    shared = {"WORLD_SIZE": str(len(tasks)), "MASTER_ADDR": "localhost", "MASTER_PORT": str(lasting_port())}
    shared["ACCELERATE_USE_CPU"] = "yes"
    begun = [
        Command("train", task.recipe, "--json", *options, folder=task.folder / "streams", RANK=str(rank), **shared)
        for rank, task in enumerate(tasks)
    ]
    try:
        yield begun
    finally:
        for command in begun:
            command.kill()


def ended(*tasks: Task, options: Sequence[str] = ()) -> list[Ended]:
    with launched(*tasks, options=options) as begun:
        done = [command.end(200) for command in begun]
    return [Ended(each.returncode, each.stdout, each.stderr) for each in done]


@pytest.fixture
def two_disks(graft_task: Task, tmp_path: Path) -> tuple[Task, Task]:
    """The same training on two machines that share no disk."""
    return graft_task, Task(Path(shutil.copytree(graft_task.folder, tmp_path / "other")))


def test_two_machines_move_the_weights_as_one_process_that_adds_up_both_their_rows(
    two_disks: tuple[Task, Task], call: Call
) -> None:
    graft_task, other = two_disks
    done = ended(*two_disks)
    assert [each.code for each in done] == [0, 0], done
    assert json.loads(done[0].out)["steps"] == 6
    assert done[1][1:] == ("", "")  # said once
    whole = graft_task.log()
    for made in (graft_task.run / "step-000006", graft_task.folder / "made"):  # as a crash after step 3 leaves it
        shutil.rmtree(made)
    done = ended(*two_disks, options=["--resume"])
    assert [each.code for each in done] == [0, 0], done
    assert graft_task.log() == whole
    assert not other.run.exists()
    assert not (other.folder / "made").exists()
    together = [each for each in whole if each["kind"] == "step"]
    assert call(graft_task.recipe, "--restart", "--set", "optim.accumulate=2").code == 0
    alone = [each for each in graft_task.log() if each["kind"] == "step"]
    assert [each["step"] for each in together] == [1, 2, 3, 4, 5, 6]
    assert [each["gradient"] for each in together] == pytest.approx([each["gradient"] for each in alone], rel=1e-3)
    assert all(math.isfinite(each["loss"]) for each in together)
    assert read_card(graft_task.folder / "made").kind == "graft"


def test_a_machine_that_dies_ends_the_training_with_a_sentence(two_disks: tuple[Task, Task]) -> None:
    main, other = two_disks
    with launched(*two_disks, options=["--steps", "100000"]) as (first, second):
        wait_until(lambda: checkpoint.newest(main.run) is not None or not first.is_alive(), 150)
        second.kill()
        done = first.end(100)
    assert done.returncode == 3, done
    assert "another process of the training has ended or can't be reached" in json.loads(done.stdout)["error"]
    assert "Traceback" not in done.stderr
    assert checkpoint.newest(main.run) is not None
    assert not other.run.exists()


@pytest.mark.parametrize("rows", [None, story_rows(20)])
def test_data_that_one_machine_lacks_or_has_otherwise_end_all(
    two_disks: tuple[Task, Task], rows: list[dict[str, Any]] | None
) -> None:
    main, other = two_disks
    data = other.folder / "rows.jsonl"
    if rows is None:
        data.unlink()
    else:
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    errors = [json.loads(each.out)["error"] for each in ended(*two_disks)]
    if rows is None:
        assert "rows.jsonl" in errors[1]
        assert errors[0] == f"process 1 of the training can't start: {errors[1]}"
    else:
        assert errors[0] == errors[1]
        assert "has other data, graph or options than process 0" in errors[0]
    assert not main.run.exists()


def interrupted(task: Task) -> None:
    """As a training leaves it that was stopped after its first judgement."""
    train(task.spec(optim__steps=3), folder=task.folder)
    shutil.rmtree(task.folder / "made")


def test_a_dry_run_refuses_what_the_training_would_refuse(graft_task: Task, call: Call) -> None:
    interrupted(graft_task)
    for options in ((), ("--resume",)):  # no option, and another number of steps
        dry, real = call(graft_task.recipe, "--dry-run", *options), call(graft_task.recipe, *options)
        assert (dry.code, dry.err.splitlines()[-1]) == (real.code, real.err.splitlines()[-1])
        assert dry.code == 3
    assert call(graft_task.recipe, "--dry-run", "--restart").code == 0


@pytest.mark.parametrize("option", [("--resume",), ("--track", "smoke-signals")])
def test_a_dry_run_refuses_the_options_that_the_training_would_refuse(
    graft_task: Task, call: Call, option: tuple[str, ...]
) -> None:
    dry, real = call(graft_task.recipe, "--dry-run", *option), call(graft_task.recipe, *option)
    assert dry.code == real.code != 0
    assert dry.err.splitlines()[-1] == real.err.splitlines()[-1]


def test_an_output_that_holds_other_things_is_refused_before_a_step_is_taken(graft_task: Task, call: Call) -> None:
    (graft_task.folder / "made").mkdir()
    (graft_task.folder / "made" / "thesis.txt").write_text("years of work")
    for options in (("--dry-run",), ()):
        ended = call(graft_task.recipe, *options)
        assert ended.code == 1
        assert "made' holds files that are not such a fuser's; choose another output or empty it" in ended.err
    assert not graft_task.run.exists()
