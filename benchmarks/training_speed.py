"""Training steps against the floor: a plain forward pass of both models over the same prompts.

Steps and plain passes alternate in one process; medians and their ratio are printed. The plain pass is this package's
own packed one, without an output head, gradients or padding: the sharer reads each step's texts, the receiver the
whole rendered prompt of each of its rows. No cache of texts is kept between steps, as in a first epoch.

    python benchmarks/training_speed.py RECIPE --data-folder DATA [--steps 20] [--json] [--profile]
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate import Accelerator

from cachegraph.training.caches import read
from cachegraph.training.checkpoint import CheckpointState
from cachegraph.training.data.examples import GraftLesson
from cachegraph.training.load import changed, load_training
from cachegraph.training.loop import TrainingLoop
from cachegraph.training.progress import Silent
from cachegraph.training.train import Opened, opened


def prompts(lessons: list[Any]) -> tuple[list[list[int]], list[list[int]]]:
    """What the sharer reads, each text once, and what the receiver reads, a prompt a row."""
    if isinstance(lessons[0], GraftLesson):
        texts = list({lesson.text.ids: None for lesson in lessons})
        return [list(ids) for ids in texts], [[*lesson.before, *lesson.after] for lesson in lessons]
    return [list(lesson.reading.sharers[0].ids) for lesson in lessons], [list(each.reading.ids) for each in lessons]


def plain(found: Opened, lessons: list[Any]) -> float:
    theirs, mine = prompts(lessons)
    began = time.perf_counter()
    read(found.pair.sharer.engine.model, theirs)
    read(found.pair.receiver.engine.model, mine)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data-folder", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--profile", action="store_true", help="what a few steps spend their time on")
    args = parser.parse_args()
    spec = changed(load_training(args.recipe), {"data.limit": 400})
    folder = args.recipe.resolve().parent
    accelerator = Accelerator()
    with opened(spec, folder, args.data_folder, Silent(), accelerator) as found, TemporaryDirectory() as run:
        model = found.pair.receiver.engine.model
        loop = TrainingLoop(
            spec, found.learner, model, found.train, found.dev, Path(run), CheckpointState(""), Silent(), accelerator
        )
        loop.step()
        if args.profile:
            with torch.profiler.profile() as profile:
                for _ in range(5):
                    loop.step()
            print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=15))
            return
        steps: list[dict[str, float]] = []
        floors: list[float] = []
        for _ in range(args.steps):
            lessons = loop.lessons(loop.state.step)
            floors.append(plain(found, lessons))
            steps.append(loop.step())
        ratios = [step["seconds"] / floor for step, floor in zip(steps, floors, strict=True)]
        numbers = {
            "steps": args.steps,
            "seconds_a_step": statistics.median(step["seconds"] for step in steps),
            "floor_seconds": statistics.median(floors),
            "ratio": statistics.median(ratios),
            "ratio_total": sum(step["seconds"] for step in steps) / sum(floors),
            "prompt_tokens_per_second": statistics.median(step["prompt_tokens_per_second"] for step in steps),
            "response_tokens_per_second": statistics.median(step["response_tokens_per_second"] for step in steps),
            "threads": torch.get_num_threads(),
        }
    if args.json:
        print(json.dumps(numbers, indent=2))
        return
    for name, value in numbers.items():
        print(f"{name:28} {value:.4g}")


if __name__ == "__main__":
    main()
