"""What the studies of a fuser share: cachegraph's commands, trainings that are kept, and parts to choose from."""

import argparse
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

__all__ = ["RECIPES", "run_command", "run_parts", "train"]

RECIPES = Path(__file__).resolve().parents[1] / "recipes"


def run_command(*arguments: str) -> None:
    """Print a cachegraph command and run it."""
    print("$ cachegraph", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "cachegraph", *arguments], check=True)


def train(recipe: str, data: Path, made: Path, *more: str) -> Path:
    """Train the fuser of this recipe in recipes/train with these changes, unless it is there; return its folder."""
    if not (made / "card.json").is_file():
        state = ("--resume",) if any(made.with_name(f"{made.name}.training").glob("step-*")) else ()
        file = str(RECIPES / f"train/{recipe}.yaml")
        run_command("train", file, "--data-folder", str(data), "-o", str(made), *more, *state)
    return made


def run_parts(description: str, parts: Mapping[str, Callable[[Path, Path], None]]) -> None:
    """Run the part that the command line names, or all, with its folders of data and results."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--data-folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", choices=parts, help="one of them; default: all")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        if args.part in (None, name):
            part(args.data_folder.resolve(), args.out.resolve())
