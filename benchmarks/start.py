"""What a start of `cachegraph run` takes over importing torch and transformers, with everything pulled and checked.

Fresh processes take turns: one imports torch and transformers, one also what transformers loads for the first model
(`PreTrainedModel`), and one runs the recipe. A run before them checks the models, if that has not been done. Memory is
the highest resident set over that of the imports, as a multiple of the weights: files that are mapped count too.

    python benchmarks/start.py [RECIPE] [--repeats 5] [--json]
"""

import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from json import loads
from pathlib import Path
from typing import Any, NamedTuple

from measuring import Range, alternate, options, parsed, show

from cachegraph.engine.catalogue import ensure
from cachegraph.engine.model.weight_files import weight_files
from cachegraph.engine.spec import ModelSpec
from cachegraph.graph.recipe.load import load_recipe

RECIPE = Path(__file__).parents[1] / "recipes" / "story-relay.yaml"
IMPORTS = {
    "torch and transformers": "import torch, transformers",
    "and the base of its models": "import torch, transformers; transformers.PreTrainedModel",
}


CLOCKS = ("wall", "cpu")


class Process(NamedTuple):
    """A process that has ended: its seconds by the clock and of the CPU, peak of resident memory, and output."""

    wall: float
    cpu: float
    peak: int
    output: str


# A process begins with the peak of the one that it was forked from, which here has loaded torch.
LAUNCH = """
import json, os, subprocess, sys, time
began = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stderr=subprocess.DEVNULL)
_, status, used = os.wait4(process.pid, 0)
wall, peak = time.perf_counter() - began, used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps([os.waitstatus_to_exitcode(status), wall, used.ru_utime + used.ru_stime, peak]), file=sys.stderr)
"""


def ended(command: Sequence[str]) -> Process:
    """Run a command to its end."""
    launch = [sys.executable, "-S", "-c", LAUNCH, *command]
    done = subprocess.run(launch, capture_output=True, text=True, check=True)
    code, wall, cpu, peak = loads(done.stderr)
    if code:
        raise SystemExit(f"{' '.join(command)} ended with {code}")
    return Process(wall, cpu, peak, done.stdout)


def weights_of(recipe: Path) -> int:
    """Bytes of all its models' weights."""
    spec = load_recipe(recipe, allow_paths=True)
    named = {spec.models.get(agent.model, agent.model) for agent in spec.speakers.values()}
    models = [ModelSpec(source=each) if isinstance(each, str) else each for each in named]
    folders = {ensure(each, recipe.parent).folder for each in models if isinstance(each, ModelSpec)}
    return sum(file.stat().st_size for folder in folders for file in weight_files(folder))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = options(__doc__)
    parser.add_argument("recipe", nargs="?", type=Path, default=RECIPE)
    given = parsed(parser, arguments)
    run = [sys.executable, "-m", "cachegraph", "run", str(given.recipe), "--no-store", "--allow-paths", "--json"]
    commands = {name: [sys.executable, "-c", code] for name, code in IMPORTS.items()} | {"the run": run}
    contenders = {name: partial(ended, command) for name, command in commands.items()}
    rounds = alternate(contenders, given.repeats, warm_up=0 if given.quick else 1)
    found = measured(rounds, weights_of(given.recipe))
    found["title"] = f"a start of {given.recipe.name}, seconds; imports and a run, each in a process of its own"
    rows = [[name, *(f"{both[of]:.2f}" for of in CLOCKS)] for name, both in found["seconds"].items()]
    rows += [[f"over {name}", *(f"{both[of]:.2f}" for of in CLOCKS)] for name, both in found["over"].items()]
    rows += [["memory over imports / weights", f"{found['peak_over_imports_per_weights']:.2f}", ""]]
    show(found, ["", "by the clock", "of the CPU"], rows, json=given.json)


def measured(rounds: dict[str, list[Process]], weights: int) -> dict[str, Any]:
    """Seconds of each kind of process, of a run over each of the imports, and its memory."""
    runs = rounds["the run"]
    found: dict[str, Any] = {"seconds": {}, "over": {}}
    for name, processes in rounds.items():
        found["seconds"][name] = {of: Range([getattr(one, of) for one in processes]) for of in CLOCKS}
    for name in IMPORTS:
        pairs = list(zip(runs, rounds[name], strict=True))
        found["over"][name] = {of: Range([getattr(a, of) - getattr(b, of) for a, b in pairs]) for of in CLOCKS}
    found["loading"] = loads(runs[-1].output)["loading"]
    found["weights_bytes"] = weights
    peaks = zip(runs, rounds[next(iter(IMPORTS))], strict=True)
    found["peak_over_imports_per_weights"] = Range([(a.peak - b.peak) / weights for a, b in peaks])
    return found


if __name__ == "__main__":
    main()
