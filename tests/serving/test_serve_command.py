"""`cachegraph serve` as people start and end it."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from live_server import chat, send, wait_until

RECIPE = """\
version: 1
name: duo
inputs: {question: {}}
agents: {answerer: {function: "steps.py:answerer"}}
output: answerer
"""
STEPS = """\
import anyio
from pathlib import Path
async def answerer(question: str) -> str:
    (Path(__file__).parent / "busy").write_text("")
    await anyio.sleep(float(question))
    return "done"
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "steps.py").write_text(STEPS)
    file = tmp_path / "duo.yaml"
    file.write_text(RECIPE)
    return file


def command(recipe: Path, *options: str) -> "subprocess.Popen[str]":
    code = "import sys\nfrom cachegraph.cli import main\nmain()"
    arguments = [sys.executable, "-c", code, "serve", str(recipe), "--allow-code", "--port", "0", *options]
    env = {**os.environ, "CACHEGRAPH_HOME": str(recipe.parent / "home"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


@contextmanager
def started(recipe: Path, *options: str) -> Iterator["tuple[subprocess.Popen[str], str]"]:
    process = command(recipe, *options)
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        assert line.startswith("cachegraph: serving duo at http://127.0.0.1:"), line + process.stderr.read()
        yield process, line.rpartition(" ")[2].strip()
    finally:
        process.kill()
        process.communicate()


def ask(url: str, seconds: str, answers: list[int]) -> threading.Thread:
    def post() -> None:
        answers.append(send("POST", f"{url}/v1/chat/completions", json=chat(seconds)).status_code)

    thread = threading.Thread(target=post)
    thread.start()
    return thread


def test_a_recipe_is_served_until_ctrl_c_which_ends_it_at_once(recipe: Path) -> None:
    with started(recipe, "--grace", "600") as (process, url):
        wait_until(lambda: send("GET", f"{url}/ready").status_code == 200)
        assert send("GET", f"{url}/v1/models").json()["data"][0]["id"] == "duo"
        answers: list[int] = []
        thread = ask(url, "600", answers)
        wait_until((recipe.parent / "busy").exists)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        thread.join(60)
    assert process.returncode == 130
    assert answers == [503]
    assert "Traceback" not in err


def test_sigterm_lets_runs_finish(recipe: Path) -> None:
    with started(recipe, "--grace", "600") as (process, url):
        wait_until(lambda: send("GET", f"{url}/ready").status_code == 200)
        announced = recipe.parent / "home" / "servers" / f"{process.pid}.json"
        assert json.loads(announced.read_text())["url"] == url
        answers: list[int] = []
        thread = ask(url, "1.0", answers)
        wait_until((recipe.parent / "busy").exists)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        thread.join(60)
    assert process.returncode == 143
    assert not announced.exists()
    assert answers == [200]
    assert "Traceback" not in err


def test_sigterm_ends_runs_that_take_longer_than_the_grace(recipe: Path) -> None:
    with started(recipe, "--grace", "0.2") as (process, url):
        wait_until(lambda: send("GET", f"{url}/ready").status_code == 200)
        answers: list[int] = []
        thread = ask(url, "600", answers)
        wait_until((recipe.parent / "busy").exists)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        thread.join(60)
    assert (process.returncode, answers) == (143, [503])


def test_what_keeps_a_server_from_starting_is_one_sentence(recipe: Path) -> None:
    def failure(*options: str) -> tuple[int, str]:
        process = command(recipe, *options)
        _, err = process.communicate(timeout=120)
        assert err.count("\n") == 1
        return process.returncode, err

    code, err = failure("--host", "0.0.0.0")
    assert code == 2
    assert "--api-key-file" in err
    code, err = failure("--api-key-file", str(recipe.parent / "none"))
    assert code == 3
    assert "can't be read" in err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, err = failure("--port", str(taken.getsockname()[1]))
    assert code == 3
    assert "can't listen" in err
    code, err = failure(str(recipe))
    assert code == 2
    assert "two recipes are named 'duo'" in err
