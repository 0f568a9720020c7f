"""What a runtime itself costs, ours beside others': CPU time per agent of chains and fan-outs that do nothing.

All contenders run in one process, in turns, and all threads' CPU time counts. In an environment of its own:

    python -m venv .venv-peers
    .venv-peers/bin/pip install -r benchmarks/peers/requirements.txt
    PYTHONPATH=src .venv-peers/bin/python benchmarks/peers/overhead.py [--agents 1000] [--rounds 7] [--json]
"""

import argparse
import gc
import json
import os
import sys
from contextlib import AsyncExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import process_time

import anyio

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("LANGSMITH_TRACING", "false")  # nobody is told of these runs

from rivals import contenders
from runtime_overhead import chain, fan_out

Row = dict[str, dict[str, float]]


async def measure(agents: int, rounds: int, room: Path) -> dict[str, Row]:
    found, _ = contenders()
    report = {}
    for shape in (chain, fan_out):
        edges = shape(agents)
        async with AsyncExitStack() as stack:
            ready = {}
            for name, contender in found.items():
                place = room / shape.__name__ / name.replace(", ", "-")
                place.mkdir(parents=True)
                ready[name] = await stack.enter_async_context(contender(agents, edges, place))
            seconds: dict[str, list[float]] = {name: [] for name in ready}
            for _ in range(rounds + 1):
                for name, execute in ready.items():
                    gc.collect()
                    begin = process_time()
                    await execute()
                    seconds[name].append(process_time() - begin)
        report[shape.__name__] = summary({name: times[1:] for name, times in seconds.items()}, agents)
    return report


def summary(seconds: dict[str, list[float]], agents: int) -> Row:
    """Medians in microseconds an agent, and of each round's ratio to ours without a store."""
    ours = seconds["cachegraph"]
    return {
        name: {
            "microseconds": round(median(times) / agents * 1e6, 1),
            "ratio": round(median(theirs / mine for theirs, mine in zip(times, ours, strict=True)), 2),
        }
        for name, times in seconds.items()
    }


def versions() -> dict[str, str]:
    found = {}
    for package in ("langgraph", "langgraph-checkpoint-sqlite", "pydantic-graph", "anyio"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU microseconds per agent that does nothing.")
    parser.add_argument("--agents", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    _, missing = contenders()
    with TemporaryDirectory() as room:
        report = anyio.run(measure, options.agents, options.rounds, Path(room))
    if options.json:
        about = {"agents": options.agents, "versions": versions(), "missing": missing}
        print(json.dumps({**about, "overhead": report}))
        return
    print(f"{options.agents} agents, CPU microseconds per agent, median of {options.rounds} rounds in turns")
    print(", ".join(f"{package} {number}" for package, number in versions().items()))
    for shape, rows in report.items():
        for name, row in rows.items():
            print(f"{shape:8}  {name:20} {row['microseconds']:9.1f}   {row['ratio']:7.2f} times cachegraph")
    for name, why in missing.items():
        print(f"left out: {name} ({why}); pip install -r benchmarks/peers/requirements.txt", file=sys.stderr)


if __name__ == "__main__":
    main()
