"""Estimate of a training: parameters, memory, and time from a few trial steps whose results are discarded."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import torch
from accelerate import Accelerator

from cachegraph.engine.model.load import LoadedModel

from .callbacks import NullCallback, TrainingCallback
from .checkpoint import CheckpointState
from .loop import TrainingLoop
from .processes import join_processes
from .run_lock import check_unlocked
from .spec import TrainSpec
from .train import open_training, resume_state, run_folder

__all__ = ["TrainingPlan", "make_plan"]

TRIED = 4  # steps; the first one is a warm-up and does not count


@dataclass(frozen=True)
class TrainingPlan:
    """Bytes and seconds are estimates; `left_out` names what they exclude."""

    receiver: str
    sharer: str
    fuser: str  # its output folder
    rows: int
    dev_rows: int
    texts: int
    parameters: int
    model_bytes: int
    training_bytes: int  # weights, gradients and two moments, in float32
    resident_bytes: int  # of this process, after the trial steps
    fuser_bytes: int  # on disk
    steps: int
    seconds_a_step: float
    prompt_tokens_per_second: float
    left_out: str = "prefilling all prompts, the ridge start and the dev evaluations come on top"

    @property
    def seconds(self) -> float:
        return self.steps * self.seconds_a_step


def make_plan(
    spec: TrainSpec,
    folder: Path,
    data_folder: Path,
    callback: TrainingCallback | None = None,
    accelerator: Accelerator | None = None,
    *,
    resume: bool = False,
    restart: bool = False,
) -> TrainingPlan:
    """Load everything, run a few steps from random weights, and return what they took. Writes nothing.

    Raises every error with which the training itself, with `resume` or `restart`, would refuse to start.
    """
    accelerator = accelerator or join_processes()
    callback = callback or NullCallback()
    with open_training(spec, folder, data_folder, callback, accelerator) as opened, TemporaryDirectory() as nowhere:
        run = run_folder(opened)
        check_unlocked(run)
        resume_state(opened, run, resume, restart)
        receiver = opened.pair.receiver.engine.model
        sharer = opened.pair.sharer.engine.model
        loop = TrainingLoop(
            spec,
            opened.learner,
            receiver,
            opened.train,
            opened.dev,
            Path(nowhere),
            CheckpointState(""),
            callback,
            accelerator,
        )
        if loop.prepares:
            some = [example for part in range(TRIED * spec.optim.accumulate) for example in loop.step_examples(part)]
            opened.learner.prepare(some, callback.on_phase)
        numbers = []
        for done in range(TRIED):
            callback.on_phase("trying steps", done, TRIED)
            numbers.append(loop.step())
        callback.on_phase("trying steps", TRIED, TRIED)
        counted = numbers[1:]
        parameters = sum(p.numel() for p in opened.learner.module.parameters())
        groups = {opened.learner.group(example) for example in opened.train}
        return TrainingPlan(
            receiver=receiver.name,
            sharer=sharer.name,
            fuser=str(opened.folder),
            rows=len(opened.train),
            dev_rows=len(opened.dev),
            texts=len(groups),
            parameters=parameters,
            model_bytes=sum(_bytes(model) for model in {id(m): m for m in (receiver, sharer)}.values()),
            training_bytes=parameters * 4 * 4,
            resident_bytes=psutil.Process().memory_info().rss,
            fuser_bytes=parameters * torch.finfo(receiver.dtype).bits // 8,
            steps=spec.optim.steps,
            seconds_a_step=sum(step["seconds"] for step in counted) / len(counted),
            prompt_tokens_per_second=sum(step["prompt_tokens_per_second"] for step in counted) / len(counted),
        )


def _bytes(model: LoadedModel) -> int:
    parameters: Any = model.network.parameters()
    return sum(p.nbytes for p in parameters)
