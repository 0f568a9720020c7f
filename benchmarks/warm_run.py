"""How soon `cachegraph run` prints on a server that has the models loaded: from exec to its first output.

Contenders take turns, each in a process of its own: Python alone, `cachegraph --version`, a run that finds the server
itself, and one with `--server`. A client that is connected already shows what is the run's own part: it asks for the
same run, and waits for the first piece of the reply.

    python benchmarks/warm_run.py [RECIPE] [--repeats 5] [--json]
"""

import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

from measuring import Range, alternate, options, parsed, show
from serve_overhead import started

from cachegraph.graph.recipe.load import load_recipe

RECIPE = Path(__file__).parents[1] / "recipes" / "story-relay.yaml"
MAIN = "from cachegraph.cli.process import run_process\nrun_process()"


class Told(NamedTuple):
    """Seconds of a process: to its first output, and of the CPU to its end."""

    first: float
    cpu: float | None


def told(command: Sequence[str], environment: dict[str, str]) -> Told:
    """Run a command to its end."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr:
        process.stdout.read(1)
        first = time.perf_counter() - began
        process.stdout.read()
        errors = process.stderr.read().decode()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}: {errors}")
    return Told(first, used.ru_utime + used.ru_stime)


def asked(port: int, name: str, output: str, inputs: Mapping[str, str]) -> Told:
    """Ask a server for a run, over a connection that is open."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=300)) as connection:
        connection.connect()
        began = time.perf_counter()
        body = json.dumps({"graph": name, "inputs": inputs})
        connection.request("POST", "/runs", body, {"Content-Type": "application/json"})
        run = json.loads(connection.getresponse().read())["id"]
        connection.request("GET", f"/runs/{run}/events")
        first = None
        for line in iter(connection.getresponse().readline, b""):
            event = json.loads(line[6:]) if line.startswith(b"data: ") else {}
            kind = event.get("type")
            prints = kind == "run_finished" or (kind == "text_delta" and event["agent"] == output)
            if prints and first is None:
                first = time.perf_counter() - began
    assert first is not None
    return Told(first, None)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = options(__doc__)
    parser.add_argument("recipe", nargs="?", type=Path, default=RECIPE)
    given = parsed(parser, arguments)
    spec = load_recipe(given.recipe, allow_code=True)
    inputs = {name: "why?" for name, entry in spec.inputs.items() if entry.is_required}
    with tempfile.TemporaryDirectory() as folder, started(given.recipe, Path(folder)) as (_, port):
        environment = {**os.environ, "CACHEGRAPH_STORE": str(Path(folder, "runs.db"))}
        run = [sys.executable, "-c", MAIN, "run", str(given.recipe)]
        run += [part for name, text in inputs.items() for part in ("-i", f"{name}={text}")]
        commands = {
            "python": [sys.executable, "-c", "print(1)"],
            "cachegraph --version": [sys.executable, "-c", MAIN, "--version"],
            "cachegraph run": [*run, "--allow-code"],
            "cachegraph run --server": [*run, "--server", f"http://127.0.0.1:{port}"],
        }
        contenders = {name: partial(told, command, environment) for name, command in commands.items()}
        contenders["a connected client"] = partial(asked, port, spec.name, spec.output, inputs)
        rounds = alternate(contenders, given.repeats, warm_up=0 if given.quick else 1)
    found = {
        name: {"first": Range([each.first for each in seconds]), "cpu": _cpu(seconds)}
        for name, seconds in rounds.items()
    }
    rows = [[name, f"{each['first']:.3f}", f"{each['cpu']:.3f}" if each["cpu"] else ""] for name, each in found.items()]
    title = f"{given.recipe.name} on a warm server, seconds from the start of a process or request to its first output"
    show({"title": title, "seconds": found}, ["", "first output", "CPU to the end"], rows, json=given.json)


def _cpu(seconds: Sequence[Told]) -> Range | None:
    known = [each.cpu for each in seconds if each.cpu is not None]
    return Range(known) if known else None


if __name__ == "__main__":
    main()
