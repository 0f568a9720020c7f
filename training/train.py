"""`train`: train the fuser of a training recipe and write it with a card."""

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
from .callbacks import NullCallback, TrainingCallback
from .checkpoint import CheckpointState
from .data.dataset import TrainingExample, read_examples, split_dev
from .load import load_training
from .loop import TrainingLoop
from .networks.create import new_learner
from .networks.learner import Learner
from .output_path import check_output_path, fuser_output_path
from .pair import Pair, choose_edge, open_pair
from .processes import all_or_none, from_main, join_processes, same_in_all
from .publish import finish_card, publish_fuser
from .run_lock import LOG, locked_run
from .spec import JointSpec, TrainSpec

__all__ = ["TrainingResult", "open_training", "resume_state", "run_folder", "train"]

MAX_COMPLAINTS = 5


@dataclass(frozen=True)
class TrainingResult:
    """The outcome of a training. `metrics` are the best checkpoint's dev scores. A joint training has two cards."""

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
class OpenedTraining:
    """A training with loaded models and encoded examples."""

    spec: TrainSpec
    pair: Pair
    learner: Learner[Any]
    train: Sequence[Any]
    dev: Sequence[Any]
    rows: Sequence[TrainingExample]  # the raw examples of `train`
    folder: Path  # the fuser's output folder
    content: str  # a hash of the graph and of all raw examples


def train(
    recipe: TrainSpec | Path | str,
    *,
    folder: Path | str | None = None,
    data_folder: Path | str | None = None,
    resume: bool = False,
    restart: bool = False,
    callback: TrainingCallback | None = None,
    accelerator: Accelerator | None = None,
) -> TrainingResult:
    """Train the fuser of a recipe, given as a file or a TrainSpec.

    Relative paths start at `folder`, those of data at `data_folder` if given. `resume` continues an interrupted
    training, `restart` discards it. Of several processes, only the main one writes. Raises RecipeError, InputError
    (also while another training writes to the same folder), ConfigError (also if another process fails or is lost),
    ModelError or FuserError.
    """
    accelerator = accelerator or join_processes()
    callback = callback or NullCallback()
    if isinstance(recipe, TrainSpec):
        spec, base = recipe, Path(folder or ".")
    else:
        spec, base = load_training(recipe), Path(folder or Path(recipe).resolve().parent)
    with ExitStack() as stack:
        opening = open_training(spec, base, Path(data_folder or base), callback, accelerator)
        opened = all_or_none(accelerator, lambda: stack.enter_context(opening))
        same_in_all(accelerator, recipe_hash(opened), "data, graph or options")

        def start() -> tuple[Path, CheckpointState] | None:
            if not accelerator.is_main_process:
                return None
            run = run_folder(opened)
            stack.enter_context(locked_run(run))
            return run, resume_state(opened, run, resume, restart)

        started = from_main(accelerator, all_or_none(accelerator, start))
        assert started is not None
        run, state = started
        return _train(opened, run, state, restart, callback, accelerator)


def _train(
    found: OpenedTraining,
    run: Path,
    state: CheckpointState,
    restart: bool,
    callback: TrainingCallback,
    accelerator: Accelerator,
) -> TrainingResult:
    if restart and accelerator.is_main_process:  # else the old checkpoints would count as newer
        _clear(run)
    receiver = found.pair.receiver.engine.model
    loop = TrainingLoop(found.spec, found.learner, receiver, found.train, found.dev, run, state, callback, accelerator)
    loop.start()
    loop.finish()

    def publish() -> tuple[Card, ...]:
        publish_fuser(run / "best", found.folder, finish_card(found.spec, state, found.rows, found.learner.start_card))
        return tuple(read_card(part) for part in fuser_parts(found.folder))

    cards = from_main(accelerator, publish() if accelerator.is_main_process else ())
    return TrainingResult(found.folder, cards, state.best, state.step, state.seconds)


def _clear(run: Path) -> None:
    """Delete an earlier training's files. The log, which this one has locked, is emptied instead."""
    for path in run.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != LOG:
            path.unlink(missing_ok=True)
    os.truncate(run / LOG, 0)


@contextmanager
def open_training(
    spec: TrainSpec, base: Path, data_folder: Path, callback: TrainingCallback, accelerator: Accelerator
) -> Iterator[OpenedTraining]:
    """Load the graph, the models and the examples, and raise every error that they have."""
    graph_file = base / Path(spec.graph).expanduser()
    graph = load_recipe(graph_file, allow_paths=True)
    edge = choose_edge(graph, spec.edge)
    train_rows, dev_rows = (
        read_examples(sources, spec.data, graph, data_folder) for sources in (spec.data.sources, spec.data.dev_sources)
    )
    device = None
    if accelerator.num_processes > 1:  # accelerate numbers CPU devices too
        device = "cpu" if accelerator.device.type == "cpu" else str(accelerator.device)
    with open_pair(graph, edge, spec.models, spec.control, graph_file.resolve().parent, device) as pair:
        learner = new_learner(spec, pair, base)
        kept = _encode_examples(learner, train_rows, "training", callback)
        if isinstance(spec.data.dev, float):
            groups = [learner.group(example) for _, example in kept]
            kept, held = split_dev(kept, groups, spec.data.dev, spec.data.seed)
            dev = [example for _, example in held]
        else:
            dev = [example for _, example in _encode_examples(learner, dev_rows, "dev", callback)]
            read = {learner.group(example) for example in dev}
            kept = [(row, example) for row, example in kept if learner.group(example) not in read]
            Random(f"{spec.data.seed} judge").shuffle(dev)  # noqa: S311
        content = hashlib.sha256(graph.model_dump_json().encode())
        for row in (*train_rows, *dev_rows):
            content.update(row.model_dump_json().encode())
        target = fuser_output_path(spec, pair, base, graph, edge)
        rows, train, dev = [row for row, _ in kept], [example for _, example in kept], dev[: spec.judge.rows]
        yield OpenedTraining(spec, pair, learner, train, dev, rows, target, content.hexdigest())


def _check_difference(learner: Learner[Any], examples: Sequence[Any], what: str) -> None:
    """Raise InputError if all texts or all answers are equal: a mismatched cache could then never do worse."""
    if len({learner.group(example) for example in examples}) < 2:
        raise InputError(
            f"the sharer reads the same text in all {what} rows ({len(examples)}), so no other example's cache can "
            "show whether the receiver uses it; give rows with at least two different texts"
        )
    replies = [learner.replies(example) for example in examples]
    if len({reply.ids[reply.right] for reply in replies}) < 2:
        raise InputError(
            f"all {what} rows ({len(examples)}) have the same right answer, which needs no cache to learn; give "
            "rows with at least two different answers"
        )


def _encode_examples(
    learner: Learner[Any], rows: Sequence[TrainingExample], what: str, callback: TrainingCallback
) -> list[tuple[TrainingExample, Any]]:
    """Raw and encoded examples. Skips those that don't fit; raises InputError if they are more than a tenth."""
    examples, complaints = [], []
    for done, row in enumerate(rows):
        try:
            examples.append((row, learner.encode(row)))
        except InputError as error:
            complaints.append(str(error))
        if done % 100 == 0:
            callback.on_phase(f"{what} rows", done, len(rows))
    callback.on_phase(f"{what} rows", len(rows), len(rows))
    if len(complaints) > len(rows) // 10 or not examples:
        shown = "; ".join(complaints[:MAX_COMPLAINTS]) or "there are none"
        raise InputError(f"{len(complaints)} of {len(rows)} {what} rows can't be used: {shown}")
    return examples


def run_folder(found: OpenedTraining) -> Path:
    """The checkpoint folder, beside the fuser's. Raises FuserError or ConfigError if the fuser can't be written."""
    is_pair = isinstance(found.spec.fuser, JointSpec) and found.spec.control != "tuned"
    check_output_path(found.folder, is_pair=is_pair)
    return found.folder.with_name(f"{found.folder.name}.training")


def recipe_hash(found: OpenedTraining) -> str:
    """A hash of everything that decides the loss curve."""
    decides = found.spec.model_dump_json(exclude={"graph", "output", "description", "scope", "licence"}) + found.content
    return hashlib.sha256(decides.encode()).hexdigest()


def resume_state(found: OpenedTraining, run: Path, resume: bool, restart: bool) -> CheckpointState:
    """The state to start from. Raises ConfigError or FuserError if checkpoints and options don't fit together,
    InputError if the examples can't train a fuser."""
    _check_difference(found.learner, found.train, "training")
    _check_difference(found.learner, found.dev, "dev")
    recipe = recipe_hash(found)
    last = None if restart else checkpoint.newest(run)
    if resume and last is None:
        raise FuserError(f"there is no whole checkpoint in {str(run)!r} to resume from; start over with --restart")
    if last is None:
        if run.exists() and not restart and any(run.glob("step-*")):
            raise ConfigError(f"{str(run)!r} holds checkpoints, none of them whole; start over with --restart")
        return CheckpointState(recipe)
    folder, state = last
    if not resume:
        raise ConfigError(
            f"{str(run)!r} holds a training at step {state.step}; continue it with --resume, discard it with "
            "--restart, or name another output"
        )
    if state.recipe != recipe:
        raise ConfigError(
            f"the checkpoint {str(folder)!r} is of another recipe, graph or data; undo the change, or --restart"
        )
    return state
