"""Kill -9 the processes of runs at random points, go on with the runs, and count what was lost or done twice.

Each trial begins a run in a process of its own, kills that process after a random time, and goes on in the next one,
which may be killed too, until the run has finished. Then it must have given what an undisturbed run gives. Each turn
that was in the store at a kill must stay as it was, and must never be begun again.

    python benchmarks/kill_runs.py [--trials 100] [--model smollm2-135m-instruct | --model random] [--seed 0] [--json]

`random` is a small Llama with random weights, so that a trial takes a second.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from cachegraph import Graph
from cachegraph.agents.base import Agent, Reply, Turn
from cachegraph.agents.create import create_agent
from cachegraph.graph.store import Store
from cachegraph.graph.store.records import StoredRun

DOCUMENT = "The ferry leaves the old harbour at seven. Anna has two tickets, and Jonas has lost his. "
MOST_KILLS = 8  # of one run
SAYS = {"max_new_tokens": 12, "ignore_eos": True}


def recipe(model: str) -> dict[str, Any]:
    """Caches that carry prompts and replies, words beside them, a branch and a join."""

    def agent(prompt: str, **generate: Any) -> dict[str, Any]:
        return {"model": "m", "prompt": prompt, "generate": {**SAYS, **generate}}

    def cache(sender: str, receiver: str, carries: str = "all") -> dict[str, Any]:
        return {"from": sender, "to": receiver, "channel": "cache", "carries": carries, "fallback": "error"}

    return {
        "version": 1,
        "name": "killed",
        "models": {"m": {"source": model, "dtype": "float32", "device": "cpu"}},
        "inputs": {"document": {}},
        "agents": {
            "reader": agent("{{ document }} In short:"),
            "who": agent("{{ reader }} Who travels?"),
            "when": agent("{{ reader }} When?"),
            "doubter": agent("{{ who }} Is that so?"),
            "silent": agent("Think of {{ when }}", max_new_tokens=0),
            "last": agent("{{ doubter }} {{ silent }} So:"),
        },
        "edges": [
            cache("reader", "who"),
            cache("reader", "when", "prompt"),
            cache("who", "doubter", "reply"),
            {"from": "when", "to": "silent"},
            cache("silent", "last", "prompt"),
            {"from": "doubter", "to": "last"},
        ],
        "output": "last",
    }


class Watched:
    """An agent whose turns leave a line in a file as they begin."""

    def __init__(self, agent: Agent, log: Path):
        self._agent = agent
        self._log = log

    def __getattr__(self, name: str) -> Any:
        return getattr(self._agent, name)

    async def rebuild(self, turn: Turn, ids: Any, calls: Any = ()) -> Any:
        return await self._agent.rebuild(turn, ids, calls)  # type: ignore[attr-defined]

    async def turn(self, turn: Turn) -> Reply:
        with self._log.open("a") as file:
            file.write(f"{self._agent.name}\n")
        return await self._agent.turn(turn)


@dataclass
class Counts:
    """What happened in all trials."""

    trials: int = 0
    kills: int = 0
    kills_before_the_run_was_entered: int = 0
    kills_with_turns_on_disk: int = 0
    most_kills_of_one_run: int = 0
    turns_kept: int = 0  # that a later process recalled
    turns_cut: int = 0  # that had begun when the kill came, and were taken again
    lost: int = 0
    done_twice: int = 0
    wrong_answers: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


class Trials:
    """Runs of one recipe that are killed."""

    def __init__(self, model: str, folder: Path, seed: int):
        self._data = recipe(model)
        self._folder = folder
        self._log = folder / "turns.log"
        self._chance = random.Random(seed)
        self.counts = Counts()
        self._inputs = {"document": DOCUMENT * 3}

    def measure(self) -> None:
        """What an undisturbed run gives, and how long it takes once its process is ready."""
        place = self._folder / "undisturbed.db"
        ready = self._fork(self._graph, partial(self._go_on, place, None))
        began = time.perf_counter()
        os.waitpid(ready, 0)
        self._whole = time.perf_counter() - began
        with Store(place) as store:
            self._expected = _texts(store.get(store.list()[0].id))
        self.counts.seconds["undisturbed"] = round(self._whole, 3)

    def trial(self, number: int) -> None:
        """One run from its beginning to its end, through as many deaths as chance has it."""
        place, kills, before, finished = self._folder / f"{number}.db", 0, dict[str, Any](), False
        while not finished:
            self._log.write_text("")
            child = self._fork(self._graph, partial(self._go_on, place, self._entered(place)))
            if not kills or (kills < MOST_KILLS and self._chance.random() < 0.8):
                self._wait(child, first=not kills)
                os.kill(child, signal.SIGKILL)
            _, how = os.waitpid(child, 0)
            killed = os.WIFSIGNALED(how)  # or it had ended just before
            kills += killed
            before, finished = self._check(place, before, killed=killed)
        self.counts.trials += 1
        self.counts.kills += kills
        self.counts.most_kills_of_one_run = max(self.counts.most_kills_of_one_run, kills)

    def _wait(self, child: int, *, first: bool) -> None:
        """Until some turns have begun, and then a part of what a turn takes; in a run's first process no longer than
        until its last turn but one has begun, so that the kill comes in time.
        """
        turns = self._chance.randint(0, len(self._expected) - 1)
        while self._begun() < turns and not _has_ended(child):
            time.sleep(0.0005)
        end = time.perf_counter() + self._chance.random() * self._whole / len(self._expected)
        while time.perf_counter() < end and not (first and self._begun() >= len(self._expected) - 1):
            time.sleep(0.0005)

    def _begun(self) -> int:
        return len(self._log.read_text().split())

    def _check(self, place: Path, before: dict[str, Any], *, killed: bool) -> tuple[dict[str, Any], bool]:
        """Nothing that was on disk is gone, changed or begun again."""
        run = self._entered(place)
        if run is None:
            self.counts.kills_before_the_run_was_entered += 1
            return {}, False
        with Store(place) as store:
            stored = store.get(run)
        now = {each.turn: each.recorded for each in stored.turns}
        begun = self._log.read_text().split()
        self.counts.lost += sum(now.get(turn) != recorded for turn, recorded in before.items())
        self.counts.done_twice += sum(turn in before for turn in begun) + len(begun) - len(set(begun))
        self.counts.turns_kept += len(before)
        self.counts.kills_with_turns_on_disk += bool(now) and killed
        self.counts.turns_cut += sum(turn not in now for turn in begun)
        finished = stored.status == "finished"
        if finished:
            self.counts.wrong_answers += _texts(stored) != self._expected
        elif not killed:
            raise SystemExit(f"a run that nobody killed ended as {stored.status}: {stored.outcome.error}")
        return now, finished

    def _go_on(self, place: Path, run: str | None, graph: Graph) -> None:
        store = Store(place)
        graph.run(self._inputs, store=store) if run is None else graph.resume(run, store=store)

    def _entered(self, place: Path) -> str | None:
        with Store(place) as store:
            runs = store.list()
        assert len(runs) < 2
        return runs[0].id if runs else None

    def _graph(self) -> Graph:
        def create(name: str, *parts: Any, **more: Any) -> Any:
            return Watched(create_agent(name, *parts, **more), self._log)

        return Graph.from_dict(self._data, self._folder, allow_paths=True, create=create).open()

    def _fork(self, prepare: Callable[[], Graph], work: Callable[[Graph], Any]) -> int:
        """A process that does it; returns when that process is prepared."""
        hears, says = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                graph = prepare()
                os.write(says, b"!")
                work(graph)
                os._exit(0)
            except BaseException:
                import traceback

                traceback.print_exc()
                os._exit(1)
        os.close(says)
        os.read(hears, 1)
        os.close(hears)
        return child


def _has_ended(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _texts(stored: StoredRun) -> dict[str, str | None]:
    return {each.turn: each.recorded.text for each in stored.turns}


def random_model(folder: Path) -> str:
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from tiny import config_of, save_model, save_tokenizer

    save_tokenizer(save_model(config_of("llama"), folder))
    return str(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = random_model(Path(folder) / "model") if options.model == "random" else options.model
        trials = Trials(model, Path(folder), options.seed)
        import torch

        import cachegraph.agents.local.agent
        import cachegraph.channels.load_route  # noqa: F401 (imported once, before processes are forked)

        torch.set_num_threads(1)
        trials.measure()
        for number in range(options.trials):
            trials.trial(number)
    counts = trials.counts
    if options.json:
        print(json.dumps(vars(counts)))
    else:
        for name, count in vars(counts).items():
            print(f"{name.replace('_', ' ')}: {count}")
    if counts.lost or counts.done_twice or counts.wrong_answers:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
