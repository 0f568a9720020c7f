"""What it costs to keep runs: CPU and wall time an agent with the store and without, and a store of many runs.

A chain and a fan-out of agents that do nothing run in alternation without a store and with one (SQLite; a commit with
an fsync for every turn, shared by turns that finish together). Then as many runs as asked for are put into a store, and
listing, showing and resuming are timed there.

    python benchmarks/run_store.py [--agents 200] [--repeats 7] [--runs 10000] [--json]
"""

import argparse
import hashlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from sqlalchemy import insert

from cachegraph import Graph, RunError
from cachegraph.agents.scripted import ScriptedAgent, scripted
from cachegraph.graph.store import Store
from cachegraph.graph.store.records import Outcome
from cachegraph.graph.store.schema import runs, turns


def graph(shape: str, agents: int) -> Graph:
    names = [f"n{number}" for number in range(agents)]
    middle = names[1:-1]
    pairs = list(pairwise(names))
    if shape == "fan-out":
        pairs = [*((names[0], name) for name in middle), *((name, names[-1]) for name in middle)]
    return Graph(
        name=shape,
        agents={name: {"model": "m", "prompt": ""} for name in names},
        edges=[{"from": sender, "to": receiver} for sender, receiver in pairs],
        output=names[-1],
        create=scripted(*(ScriptedAgent(name, "x") for name in names)),
    )


def overhead(shape: str, agents: int, repeats: int, folder: Path) -> dict[str, float]:
    """Microseconds an agent, medians."""
    built, taken = graph(shape, agents), dict[str, list[float]]()
    with Store(folder / f"{shape}.db") as store:
        for kept in (None, store):  # warm-up
            built.run(store=kept)
        for _ in range(repeats):
            for kind, kept in (("off", None), ("on", store)):
                wall, cpu = time.perf_counter(), time.process_time()
                built.run(store=kept)
                taken.setdefault(f"cpu, store {kind}", []).append(time.process_time() - cpu)
                taken.setdefault(f"wall, store {kind}", []).append(time.perf_counter() - wall)
    return {kind: round(statistics.median(times) / agents * 1e6, 1) for kind, times in taken.items()}


def fill(store: Store, number: int) -> str:
    """Copies of one real run, which failed at its last agent; gives the id of one of them."""
    built = graph("chain", 10)
    broken = Graph(built.spec, create=scripted(ScriptedAgent("n9", fail=ValueError("no"))))
    try:
        broken.run(store=store)
    except RunError as error:
        real = store.get(error.result.run_id)
    setting, outcome = real.setting.to_json(), Outcome().to_json()
    bodies = {each.turn: json.dumps(vars(each.recorded)) for each in real.turns}
    for start in range(0, number, 1000):
        ids = [_id(each) for each in range(start, min(start + 1000, number))]
        rows = [
            {
                "id": run,
                "graph": "chain",
                "status": "failed",
                "created": real.created - int(run, 16) % 10**6,
                "seconds": 1.0,
            }
            | {"recipe": real.recipe, "setting": setting, "outcome": outcome}
            for run in ids
        ]
        each_turn = [
            {"run": run, "turn": turn, "recorded": real.created, "body": body}
            for run in ids
            for turn, body in bodies.items()
        ]
        with store._database.writing() as connection:
            connection.execute(insert(runs), rows)
            connection.execute(insert(turns), each_turn)
    return _id(number // 2)


def _id(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()[:12]


def _when(run: str) -> float:
    """Some time in the last days."""
    return time.time() - int(run, 16) % 10**6


def timed(work: Callable[[], Any]) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    work()
    return round((time.perf_counter() - began) * 1000, 2)


def many(number: int, folder: Path) -> dict[str, float]:
    """Milliseconds in a store of many runs."""
    place = folder / "many.db"
    with Store(place) as store:
        run = fill(store, number)
    with Store(place) as store:
        figures = {
            "open and list 20": timed(store.list),
            "list 20": timed(store.list),
            "list 20 of one status": timed(lambda: store.list(status="failed")),
            "list the last page": timed(lambda: store.list(skip=number - 20)),
            "show by the beginning of an id": timed(lambda: store.get(run[:8])),
            "show": timed(lambda: store.get(run)),
            "resume, its last agent of ten": timed(lambda: graph("chain", 10).resume(run, store=store)),
        }
    figures["megabytes"] = round(place.stat().st_size / 1e6, 1)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures: dict[str, Any] = {"python": sys.version.split()[0]}
    with tempfile.TemporaryDirectory() as folder:
        for shape in ("chain", "fan-out"):
            name = f"{shape} of {options.agents}, microseconds an agent"
            figures[name] = overhead(shape, options.agents, options.repeats, Path(folder))
        figures[f"{options.runs} runs, milliseconds"] = many(options.runs, Path(folder))
    if options.json:
        print(json.dumps(figures))
        return
    for name, each in figures.items():
        if isinstance(each, dict):
            print(name)
            for what, figure in each.items():
                print(f"  {what}: {figure}")


if __name__ == "__main__":
    main()
