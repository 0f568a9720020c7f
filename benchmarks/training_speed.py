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

from cachegraph.training.callbacks import NullCallback
from cachegraph.training.checkpoint import CheckpointState
from cachegraph.training.data.examples import GraftExample
from cachegraph.training.load import changed, load_training
from cachegraph.training.loop import TrainingLoop
from cachegraph.training.prefill import prefill
from cachegraph.training.train import OpenedTraining, open_training


def prompts(examples: list[Any]) -> tuple[list[list[int]], list[list[int]]]:
    """What the sharer reads, each text once, and what the receiver reads, a prompt a row."""
    if isinstance(examples[0], GraftExample):
        texts = list({example.text.ids: None for example in examples})
        return [list(ids) for ids in texts], [[*example.before, *example.after] for example in examples]
    shared = [example.shared_prompt for example in examples]
    return [list(prompt.sharers[0].ids) for prompt in shared], [list(prompt.ids) for prompt in shared]


def plain(found: OpenedTraining, examples: list[Any]) -> float:
    sharer_ids, receiver_ids = prompts(examples)
    began = time.perf_counter()
    prefill(found.pair.sharer.engine.model, sharer_ids)
    prefill(found.pair.receiver.engine.model, receiver_ids)
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
    with (
        open_training(spec, folder, args.data_folder, NullCallback(), accelerator) as found,
        TemporaryDirectory() as run,
    ):
        model = found.pair.receiver.engine.model
        loop = TrainingLoop(
            spec,
            found.learner,
            model,
            found.train,
            found.dev,
            Path(run),
            CheckpointState(""),
            NullCallback(),
            accelerator,
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
            examples = loop.step_examples(loop.state.step)
            floors.append(plain(found, examples))
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
