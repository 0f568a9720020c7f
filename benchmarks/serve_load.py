"""A server under load: what clients see, what it keeps, and what a kill loses.

Four stages, each with a server of its own in another process:

1. stream: one streaming client alone, then `--clients` of them for `--minutes`: errors, first tokens, memory.
2. vanish: `--vanishing` clients connect, read the first bytes and go away: no run is left, and no KV memory.
3. fuzz: `--fuzzed` requests that are nearly right, or random: no 5xx, no traceback, no path, and the server answers.
4. kill: clients start stored runs, SIGKILL ends the server, and the next one finishes every run that was acknowledged.

    python benchmarks/serve_load.py [--recipe recipes/science-duo.yaml] [--minutes 10] [--quick] [--json]

The recipe needs one text input. Stage 1 takes 1.1 times `--minutes`; the others take as long as the machine needs.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import anyio
import httpx2
import psutil
from measuring import machine
from serve_overhead import started

QUESTIONS = ("Why is the sky blue?", "What do bees eat?", "How do ships float?", "Why does iron rust?")
PATIENCE = 300.0  # seconds that a request may take
SETTLED = 60.0  # seconds within which a server must be idle again
ROOT = Path(__file__).resolve().parents[1]
STAGES = ("stream", "vanish", "fuzz", "kill")


def question(dice: random.Random) -> str:
    """A text that no other request begins with, so that no prefix is reused."""
    return f"{dice.randrange(10**9)}. {dice.choice(QUESTIONS)}"


def _chat(model: str, dice: random.Random) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": question(dice)}], "stream": True}


class Streams:
    """What streaming clients have seen."""

    def __init__(self) -> None:
        self.statuses: Counter[str] = Counter()
        self.first: list[float] = []  # seconds to the first text
        self.tokens = 0

    async def client(
        self, http: httpx2.AsyncClient, options: argparse.Namespace, until: float, dice: random.Random
    ) -> None:
        """Ask one question after the other until this time."""
        while time.perf_counter() < until:
            body = {**_chat(options.name, dice), "stream_options": {"include_usage": True}}
            body["max_tokens"] = options.tokens or None
            try:
                wait = await self._ask(http, body)
            except httpx2.HTTPError as error:
                self.statuses[type(error).__name__] += 1
                wait = 0.1
            await anyio.sleep(wait)

    async def _ask(self, http: httpx2.AsyncClient, body: Mapping[str, Any]) -> float:
        """Stream one reply, and return the seconds to wait before the next request."""
        began, seen = time.perf_counter(), False
        async with http.stream("POST", "/v1/chat/completions", json=dict(body)) as answer:
            if answer.status_code != 200:
                self.statuses[str(answer.status_code)] += 1
                return float(answer.headers.get("retry-after", 0.1))
            ended = False
            async for line in answer.aiter_lines():
                ended = ended or line == "data: [DONE]"
                if not line.startswith("data: {"):
                    continue
                piece = json.loads(line[6:])
                if "error" in piece:
                    self.statuses["error in stream"] += 1
                    return 0.1
                if not seen and any(each["delta"].get("content") for each in piece["choices"]):
                    seen = True
                    self.first.append(time.perf_counter() - began)
                self.tokens += (piece.get("usage") or {}).get("completion_tokens", 0)
        self.statuses["200" if ended else "cut"] += 1
        return 0.0


async def stream(port: int, pid: int, options: argparse.Namespace) -> dict[str, Any]:
    """Stage 1."""
    async with client(port) as http:
        alone = await _streams(http, 1, options.minutes * 6, options)
        memory: list[float] = []
        async with anyio.create_task_group() as group:
            group.start_soon(_watch_memory, pid, memory)
            together = await _streams(http, options.clients, options.minutes * 60, options)
            group.cancel_scope.cancel()
    warm = memory[len(memory) // 10 :]
    fine = {"200", "429"}
    return {
        "alone": alone,
        "together": together,
        "throughput_over_one": together["tokens_s"] / alone["tokens_s"] if alone["tokens_s"] else None,
        "rss_mb": {"after a tenth": warm[0], "end": warm[-1], "peak": max(memory)},
        "errors": sum(count for status, count in together["answers"].items() if status not in fine),
    }


async def _streams(
    http: httpx2.AsyncClient, clients: int, seconds: float, options: argparse.Namespace
) -> dict[str, Any]:
    streams, began = Streams(), time.perf_counter()
    async with anyio.create_task_group() as group:
        for number in range(clients):
            dice = random.Random(f"{options.seed} {clients} {number}")
            group.start_soon(streams.client, http, options, began + seconds, dice)
    took = time.perf_counter() - began
    return {
        "clients": clients,
        "seconds": took,
        "answers": dict(streams.statuses),
        "first_token_s": {"median": median(streams.first), "worst": max(streams.first)} if streams.first else None,
        "tokens_s": streams.tokens / took,
    }


async def _watch_memory(pid: int, found: list[float]) -> None:
    process = psutil.Process(pid)
    while True:
        found.append(process.memory_info().rss / 1e6)
        await anyio.sleep(0.5)


async def vanish(port: int, pid: int, options: argparse.Namespace) -> dict[str, Any]:
    """Stage 2."""
    dice = random.Random(options.seed)
    async with client(port) as http:
        before = await _left(http)
        limiter = anyio.CapacityLimiter(options.clients)
        async with anyio.create_task_group() as group:
            for _ in range(options.vanishing):
                group.start_soon(_vanish, http, _chat(options.name, dice), dice.random() * 0.3, limiter)
        end = time.perf_counter() + SETTLED
        while (left := await _left(http)) != before and time.perf_counter() < end:  # noqa: ASYNC110
            await anyio.sleep(0.2)
    return {"clients": options.vanishing, "left_before": before, "left": left, "is_clean": left == before}


async def _vanish(http: httpx2.AsyncClient, body: Any, seconds: float, limiter: anyio.CapacityLimiter) -> None:
    async with limiter:
        with anyio.move_on_after(seconds):
            async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
                async for _ in answer.aiter_bytes():
                    break


async def _left(http: httpx2.AsyncClient) -> dict[str, float]:
    """What runs hold: places, rows, and KV memory beyond the prefixes that are kept for reuse."""
    runs = memory = 0.0
    for line in (await http.get("/metrics")).text.splitlines():
        name, _, value = line.rpartition(" ")
        if name.startswith(("cachegraph_runs{", "cachegraph_rows{")):
            runs += float(value)
        elif name.startswith("cachegraph_kv_bytes{"):
            memory += float(value) * (('kind="used"' in name) - ('kind="prefixes"' in name))
    return {"runs and rows": runs, "kv bytes": memory}


async def fuzz(port: int, pid: int, options: argparse.Namespace) -> dict[str, Any]:
    """Stage 3."""
    dice, found = random.Random(options.seed), Counter[str]()
    secret = str(ROOT)
    async with client(port) as http:
        paths = (await http.get("/openapi.json")).json()["paths"]
        posts = [path for path, each in paths.items() if "post" in each]

        async def one(dice: random.Random) -> None:
            try:
                method, path, content = _request(dice, list(paths), posts, options.name)
                headers = {"Content-Type": dice.choice(["application/json"] * 9 + ["text/plain"])}
                answer = await http.request(method, path, content=content, headers=headers)
            except (httpx2.InvalidURL, httpx2.LocalProtocolError):
                found["not sent"] += 1
                return
            except httpx2.HTTPError as error:
                found[f"broken: {type(error).__name__}"] += 1
                return
            found[f"{answer.status_code // 100}xx"] += 1
            found["tracebacks"] += "Traceback" in answer.text
            found["paths"] += secret in answer.text

        limiter = anyio.CapacityLimiter(16)

        async def limited(dice: random.Random) -> None:
            async with limiter:
                await one(dice)

        async with anyio.create_task_group() as group:
            for _ in range(options.fuzzed):
                group.start_soon(limited, random.Random(dice.random()))
        lives = (await http.get("/health")).status_code == 200
    return {"requests": options.fuzzed, "answers": dict(found), "lives": lives}


def _request(dice: random.Random, paths: Sequence[str], posts: Sequence[str], model: str) -> tuple[str, str, bytes]:
    if dice.random() < 0.3:
        path = dice.choice(list(paths)).replace("{", "").replace("}", dice.choice(["", "%00", "/..", "é"]))
        return dice.choice(["GET", "POST", "PUT", "DELETE", "OPTIONS"]), path, dice.randbytes(dice.randrange(200))
    body: dict[str, Any] = {
        "model": model,
        "graph": model,
        "messages": [{"role": "user", "content": "why?"}],
        "input": "why?",
        "inputs": {},
        "max_tokens": 2,
        "settings": {"max_new_tokens": 2},
        "answer": "yes",
    }
    keep = dice.sample(sorted(body), dice.randrange(1, len(body) + 1))
    changed = {name: _odd(dice) if dice.random() < 0.25 else body[name] for name in keep}
    text = json.dumps(changed)
    if dice.random() < 0.1:
        text = text[: dice.randrange(len(text))]
    return "POST", dice.choice(list(posts)).replace("{run}", "server-000000000000"), text.encode()


def _odd(dice: random.Random, depth: int = 3) -> Any:
    kinds: list[Callable[[], Any]] = [
        lambda: None,
        lambda: dice.choice([True, False, -1, 0, 1e308, 10**30]),
        lambda: "".join(chr(dice.choice([0, 9, 65, 0x7F, 0xFFFD, 0x1F600])) for _ in range(dice.randrange(8))),
        lambda: [_odd(dice, depth - 1) for _ in range(dice.randrange(3))] if depth else [],
        lambda: {str(_odd(dice, 0)): _odd(dice, depth - 1) for _ in range(dice.randrange(3))} if depth else {},
    ]
    return dice.choice(kinds)()


async def begin_runs(port: int, pid: int, options: argparse.Namespace) -> list[str]:
    """Stage 4, first half: the runs that a server acknowledged before it was killed."""
    acknowledged: list[str] = []

    async def one(number: int) -> None:
        dice = random.Random(f"{options.seed} {number}")
        async with client(port) as http:
            while True:
                inputs = {options.input: question(dice)}
                try:
                    answer = await http.post("/runs", json={"graph": options.name, "inputs": inputs})
                except httpx2.HTTPError:  # the kill
                    return
                if answer.status_code == 201:
                    acknowledged.append(answer.json()["id"])
                await anyio.sleep(0.02 if answer.status_code == 201 else 0.2)

    async with anyio.create_task_group() as group:
        for number in range(min(options.clients, 8)):
            group.start_soon(one, number)
        await anyio.sleep(options.kill_after)
        psutil.Process(pid).kill()
        await anyio.sleep(0.5)
        group.cancel_scope.cancel()
    return acknowledged


async def find_runs(port: int, pid: int, runs: Sequence[str]) -> dict[str, Any]:
    """Stage 4, second half: what became of them."""
    statuses: dict[str, str] = {}
    end = time.perf_counter() + PATIENCE
    async with client(port) as http:
        while time.perf_counter() < end:
            for run in runs:
                if statuses.get(run) != "finished":
                    answer = await http.get(f"/runs/{run}")
                    statuses[run] = answer.json()["status"] if answer.status_code == 200 else "lost"
            if all(status not in ("running", "interrupted") for status in statuses.values()):
                break
            await anyio.sleep(0.5)
    return {"acknowledged": len(runs), "became": dict(Counter(statuses.values()))}


def client(port: int) -> httpx2.AsyncClient:
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=256)
    return httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE, limits=limits, trust_env=False)


def kill(start: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Stage 4."""
    with start() as (pid, port):
        runs = anyio.run(begin_runs, port, pid, options)
    with start() as (pid, port):
        return anyio.run(find_runs, port, pid, runs)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All wanted stages."""
    Stage = Callable[[int, int, argparse.Namespace], Coroutine[Any, Any, dict[str, Any]]]
    stages: dict[str, Stage] = {"stream": stream, "vanish": vanish, "fuzz": fuzz}
    found: dict[str, Any] = {"title": f"{options.recipe.name} under load"}
    with tempfile.TemporaryDirectory() as folder:
        start = partial(started, options.recipe, home=Path(folder), more=("--queue", str(2 * options.clients)))
        for name in options.stages:
            if name == "kill":
                found[name] = kill(start, options)
                continue
            with start() as (pid, port):
                found[name] = anyio.run(stages[name], port, pid, options)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"minutes": (10.0, 0.02), "clients": (50, 3), "vanishing": (1000, 6), "fuzzed": (10_000, 60)}
    sizes |= {"kill_after": (10.0, 0.5)}
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "science-duo.yaml")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--tokens", type=int, default=24, help="of a reply; 0: the recipe's own limit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="the smallest sizes: that it runs, not how it does")
    parser.add_argument("--json", action="store_true")
    for name, (whole, quick) in sizes.items():
        words = f"default {whole}; with --quick {quick}"
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(whole), help=words)
    options = parser.parse_args(arguments)
    for name, both in sizes.items():
        if getattr(options, name) is None:
            setattr(options, name, both[options.quick])
    options.name, options.input = names_in(options.recipe)
    found = measure(options)
    if options.json:
        print(json.dumps({**found, "machine": machine()}, indent=2))
        return
    print(found["title"])
    for stage in options.stages:
        print(f"{stage}: {json.dumps(found[stage], indent=2)}")
    print(", ".join(f"{name} {value}" for name, value in machine().items()))


def names_in(recipe: Path) -> tuple[str, str]:
    """The recipe's name and the name of its input."""
    from cachegraph import Graph

    spec = Graph.from_yaml(recipe, allow_code=True).spec
    wanted = [name for name, entry in spec.inputs.items() if entry.is_required] or list(spec.inputs)
    if len(wanted) != 1 and all(spec.inputs[name].is_required for name in wanted):
        sys.exit(f"{recipe} needs {len(wanted)} inputs; take a recipe with one")
    return spec.name, wanted[0]


if __name__ == "__main__":
    main()
