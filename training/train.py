"""`train`: from a training recipe to a fuser with a card."""

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from accelerate import Accelerator

from cachegraph.channels.fusers.files.card import Card
from cachegraph.channels.fusers.files.joint_folder import fuser_parts
from cachegraph.channels.fusers.files.weights import read_card
from cachegraph.errors import ConfigError, FuserError, InputError
from cachegraph.graph.recipe.load import load_recipe

from . import checkpoint
from .checkpoint import CheckpointState
from .data.dataset import TrainingExample, hold_back, read_examples
from .load import load_training
from .loop import TrainingLoop
from .networks.create import new_learner
from .networks.learner import Learner
from .output_path import check_place, fuser_place
from .pair import Pair, choose_edge, open_pair
from .progress import Silent, Watch
from .publish import finish_card, move_fuser
from .run_lock import LOG, locked_run
from .spec import JointSpec, TrainSpec

__all__ = ["Trained", "opened", "run_folder", "train", "where_to_begin"]

MAX_COMPLAINTS = 5


@dataclass(frozen=True)
class Trained:
    """What came of a training. `metrics` are the best checkpoint's on the dev rows; see the cards for the rest: one, or
    two of a joint training."""

    folder: Path
    cards: tuple[Card, ...]
    metrics: dict[str, float]
    steps: int
    seconds: float

    @property
    def card(self) -> Card:
        """The first card."""
        return self.cards[0]


@dataclass(frozen=True, eq=False)
class Opened:
    """A training whose models are loaded and whose rows are read."""

    spec: TrainSpec
    pair: Pair
    learner: Learner[Any]
    train: Sequence[Any]
    dev: Sequence[Any]
    rows: Sequence[TrainingExample]  # that `train` is made of
    folder: Path  # where the fuser will be
    content: str  # a hash of the graph and of all rows


def train(
    recipe: TrainSpec | Path | str,
    *,
    folder: Path | str | None = None,
    data_folder: Path | str | None = None,
    resume: bool = False,
    restart: bool = False,
    watch: Watch | None = None,
    accelerator: Accelerator | None = None,
) -> Trained:
    """Train the fuser of a recipe, a file or a TrainSpec whose relative paths start at `folder`; those of its data at
    `data_folder`, if that is given.

    An interrupted training goes on with `resume` and is thrown away with `restart`. Raises RecipeError, InputError
    (also while another training writes to the same place), ConfigError, ModelError or FuserError.
    """
    accelerator = accelerator or Accelerator()
    watch = watch or Silent()
    if isinstance(recipe, TrainSpec):
        spec, base = recipe, Path(folder or ".")
    else:
        spec, base = load_training(recipe), Path(folder or Path(recipe).resolve().parent)
    with opened(spec, base, Path(data_folder or base), watch, accelerator) as found:
        run = run_folder(found)
        with locked_run(run) if accelerator.is_main_process else nullcontext():
            return _train(found, run, where_to_begin(found, run, resume, restart), restart, watch, accelerator)


def _train(
    found: Opened, run: Path, state: CheckpointState, restart: bool, watch: Watch, accelerator: Accelerator
) -> Trained:
    accelerator.wait_for_everyone()
    if restart and accelerator.is_main_process:  # else its later checkpoints would stand before the new ones
        _clear(run)
    receiver = found.pair.receiver.engine.model
    loop = TrainingLoop(found.spec, found.learner, receiver, found.train, found.dev, run, state, watch, accelerator)
    loop.start()
    loop.finish()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        move_fuser(run / "best", found.folder, finish_card(found.spec, state, found.rows))
    accelerator.wait_for_everyone()
    cards = tuple(read_card(part) for part in fuser_parts(found.folder))
    return Trained(found.folder, cards, state.best, state.step, state.seconds)


def _clear(run: Path) -> None:
    """Delete what an earlier training left, but for the log, which this one holds locked and empties."""
    for path in run.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != LOG:
            path.unlink(missing_ok=True)
    os.truncate(run / LOG, 0)


@contextmanager
def opened(spec: TrainSpec, base: Path, data_folder: Path, watch: Watch, accelerator: Accelerator) -> Iterator[Opened]:
    """Read the graph, the models and the rows. Raises what is wrong with them before anything is learnt."""
    graph_file = base / Path(spec.graph).expanduser()
    graph = load_recipe(graph_file, allow_paths=True)
    edge = choose_edge(graph, spec.edge)
    train_rows, dev_rows = (
        read_examples(sources, spec.data, graph, data_folder) for sources in (spec.data.sources, spec.data.dev_sources)
    )
    device = None
    if accelerator.num_processes > 1:  # which numbers CPUs, too
        device = "cpu" if accelerator.device.type == "cpu" else str(accelerator.device)
    with open_pair(graph, edge, spec.models, spec.control, graph_file.resolve().parent, device) as pair:
        learner = new_learner(spec, pair)
        kept = _lessons(learner, train_rows, "training", watch)
        if isinstance(spec.data.dev, float):
            groups = [learner.group(lesson) for _, lesson in kept]
            kept, held = hold_back(kept, groups, spec.data.dev, spec.data.seed)
            dev = [lesson for _, lesson in held]
        else:
            dev = [lesson for _, lesson in _lessons(learner, dev_rows, "dev", watch)]
            read = {learner.group(lesson) for lesson in dev}
            kept = [(row, lesson) for row, lesson in kept if learner.group(lesson) not in read]
            Random(f"{spec.data.seed} judge").shuffle(dev)  # noqa: S311
        content = hashlib.sha256(graph.model_dump_json().encode())
        for row in (*train_rows, *dev_rows):
            content.update(row.model_dump_json().encode())
        target = fuser_place(spec, pair, base, graph, edge)
        rows, train, dev = [row for row, _ in kept], [lesson for _, lesson in kept], dev[: spec.judge.rows]
        yield Opened(spec, pair, learner, train, dev, rows, target, content.hexdigest())


def _check_difference(learner: Learner[Any], lessons: Sequence[Any]) -> None:
    """Raise InputError where another example's cache could do no worse than a row's own, whatever is learnt."""
    if len({learner.group(lesson) for lesson in lessons}) < 2:
        raise InputError(
            f"the sharer reads the same text in all training rows ({len(lessons)}), so no other example's cache can "
            "show whether it is listened to; give rows with at least two different texts"
        )
    replies = [learner.replies(lesson) for lesson in lessons]
    if len({each.ids[each.right] for each in replies}) < 2:
        raise InputError(
            f"all training rows ({len(lessons)}) have the same right answer, which is learnt without listening; give "
            "rows with at least two different answers"
        )


def _lessons(
    learner: Learner[Any], rows: Sequence[TrainingExample], what: str, watch: Watch
) -> list[tuple[TrainingExample, Any]]:
    """Rows and what is to be learnt from each. Rows that don't fit are left out, unless they are too many."""
    lessons, complaints = [], []
    for done, row in enumerate(rows):
        try:
            lessons.append((row, learner.lesson(row)))
        except InputError as error:
            complaints.append(str(error))
        if done % 100 == 0:
            watch.phase(f"{what} rows", done, len(rows))
    watch.phase(f"{what} rows", len(rows), len(rows))
    if len(complaints) > len(rows) // 10 or not lessons:
        shown = "; ".join(complaints[:MAX_COMPLAINTS]) or "there are none"
        raise InputError(f"{len(complaints)} of {len(rows)} {what} rows can't be used: {shown}")
    return lessons


def run_folder(found: Opened) -> Path:
    """The folder of the checkpoints. Raises FuserError or ConfigError where the fuser can't go beside it."""
    check_place(found.folder, is_pair=isinstance(found.spec.fuser, JointSpec))
    return found.folder.with_name(f"{found.folder.name}.training")


def where_to_begin(found: Opened, run: Path, resume: bool, restart: bool) -> CheckpointState:
    """The state to go on from. Raises ConfigError or FuserError where that isn't clear, InputError where the rows can't
    show what is to be learnt."""
    _check_difference(found.learner, found.train)
    decides = found.spec.model_dump_json(exclude={"graph", "output", "description", "scope", "licence"}) + found.content
    recipe = hashlib.sha256(decides.encode()).hexdigest()
    last = None if restart else checkpoint.newest(run)
    if resume and last is None:
        raise FuserError(f"there is no whole checkpoint in {str(run)!r} to resume from; start anew with --restart")
    if last is None:
        if run.exists() and not restart and any(run.glob("step-*")):
            raise ConfigError(f"{str(run)!r} holds checkpoints, none of them whole; start anew with --restart")
        return CheckpointState(recipe)
    folder, state = last
    if not resume:
        raise ConfigError(
            f"{str(run)!r} holds a training that stands at step {state.step}; go on with --resume, throw it away with "
            "--restart, or name another output"
        )
    if state.recipe != recipe:
        raise ConfigError(
            f"the checkpoint {str(folder)!r} is of another recipe, graph or data; undo the change, or --restart"
        )
    return state
