"""What the server costs: a chat completion of a graph that does nothing, against `graph.arun` on the same graph.

The server is a process of its own; requests come one after the other, over one connection. Prints the medians, then how
long the server took to start and how much memory it has, without models.

    python benchmarks/serve_overhead.py [--requests 500]
"""

import argparse
import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import median

import anyio
import psutil

from cachegraph import Graph

RECIPE = """\
version: 1
name: nothing
inputs: {question: {}}
agents: {idle: {function: "steps.py:idle"}}
output: idle
"""
STEPS = "def idle() -> str:\n    return 'done'\n"
WARM = 20  # requests that are not counted


async def run_alone(recipe: Path, times: int) -> list[float]:
    """Seconds of `graph.arun`."""
    seconds = []
    async with Graph.from_yaml(recipe, allow_code=True) as graph:
        for _ in range(times + WARM):
            began = time.perf_counter()
            await graph.arun(question="why?")
            seconds.append(time.perf_counter() - began)
    return seconds[WARM:]


def ask(connection: http.client.HTTPConnection, stream: bool, times: int) -> list[float]:
    """Seconds of requests, each to the end of its answer."""
    body = json.dumps({"model": "nothing", "messages": [{"role": "user", "content": "why?"}], "stream": stream})
    seconds = []
    for _ in range(times + WARM):
        began = time.perf_counter()
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        answer.read()
        seconds.append(time.perf_counter() - began)
    return seconds[WARM:]


@contextmanager
def started(recipe: Path, home: Path | None = None, more: Sequence[str] = ()) -> Iterator[tuple[int, int]]:
    """A server of the recipe: its process and its port. Runs are stored in `home`, by default beside the recipe."""
    code = "from cachegraph.cli import main\nmain()"
    command = [sys.executable, "-c", code, "serve", str(recipe), "--allow-code", "--port", "0", *more]
    environment = {**os.environ, "CACHEGRAPH_STORE": str((home or recipe.parent) / "runs.db")}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    try:
        port = int(process.stderr.readline().rpartition(":")[2])
        while not is_ready(port):
            if process.poll() is not None:
                raise SystemExit(process.stderr.read())
            time.sleep(0.005)
        yield process.pid, port
    finally:
        process.terminate()
        process.communicate()


def is_ready(port: int) -> bool:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
        try:
            connection.request("GET", "/ready")
            return connection.getresponse().status == 200
        except OSError:
            return False


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=500)
    times: int = parser.parse_args(arguments).requests
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "steps.py").write_text(STEPS)
        recipe = Path(folder, "nothing.yaml")
        recipe.write_text(RECIPE)
        alone = median(anyio.run(run_alone, recipe, times)) * 1e3
        began = time.perf_counter()
        with started(recipe) as (pid, port):
            start, server = time.perf_counter() - began, psutil.Process(pid)
            size, used = server.memory_info().rss / 1e6, sum(server.cpu_times()[:2])
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
                whole = median(ask(connection, False, times)) * 1e3
                used = (sum(server.cpu_times()[:2]) - used) / (times + WARM) * 1e3
                streamed = median(ask(connection, True, times)) * 1e3
            later = server.memory_info().rss / 1e6
    print(f"graph.arun            {alone:6.2f} ms (median of {times})")
    print(f"chat completion       {whole:6.2f} ms, overhead {whole - alone:.2f} ms")
    print(f"the server's CPU      {used:6.2f} ms a request")
    print(f"streamed, to its end  {streamed:6.2f} ms, overhead {streamed - alone:.2f} ms")
    print(f"start to ready        {start:6.2f} s, without models")
    print(f"memory                {size:6.0f} MB when ready, {later:.0f} MB after {2 * (times + WARM)} requests")


if __name__ == "__main__":
    main()
