"""How a command starts and ends its process: quickly, and with nothing left out."""

import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator

import pytest

from cachegraph.cli.garbage_collection import defer_garbage_collection

PROCESS = """
import atexit, sys, threading, time
from cachegraph.cli.process import run_process

class Kept:
    def __del__(self):
        print("torn down")

kept = Kept()
kept.itself = kept
def work():
    time.sleep(0.2)  # the command has begun, and may have ended
    atexit.register(print, "registered")
    print("joined")

threading.Thread(target=work).start()
run_process()
"""


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", PROCESS, *arguments], capture_output=True, text=True, timeout=60)


def test_a_process_joins_its_threads_and_is_not_torn_down() -> None:
    ended = run("--version")
    assert ended.returncode == 0, ended.stderr
    assert "cachegraph 0." in ended.stdout  # on a busy machine the thread prints first
    assert {"joined", "registered"} <= {*ended.stdout.split()}
    assert "torn down" not in ended.stdout


@pytest.mark.parametrize(("arguments", "code"), [(["run", "no-such.yaml"], 2), (["validate"], 2), (["--help"], 0)])
def test_a_process_ends_with_the_exit_code_of_its_command(arguments: list[str], code: int) -> None:
    assert run(*arguments).returncode == code


@pytest.fixture
def nothing_is_frozen() -> Iterator[None]:
    """As in a process that begins; the tests' own has frozen what it imported."""
    gc.unfreeze()
    yield
    gc.freeze()


@pytest.mark.usefixtures("nothing_is_frozen")
def test_garbage_of_the_start_is_collected_once_the_start_is_over() -> None:
    class Node:
        pass

    def cycle() -> "weakref.ref[Node]":
        node = Node()
        node.itself = node  # type: ignore[attr-defined]
        return weakref.ref(node)

    with defer_garbage_collection() as started:
        assert not gc.isenabled()
        before = cycle()
        started()
        assert gc.isenabled()
        later = cycle()
        gc.collect()
        assert before() is not None
        assert later() is None
    gc.collect()
    assert before() is None
    assert gc.get_freeze_count() == 0


@pytest.mark.usefixtures("nothing_is_frozen")
def test_what_a_program_has_frozen_stays_frozen() -> None:
    gc.freeze()
    frozen = gc.get_freeze_count()
    with defer_garbage_collection() as started:
        later: list[list[int]] = [[] for _ in range(10_000)]
        started()
        assert gc.get_freeze_count() < frozen + len(later)
    assert gc.get_freeze_count() > 0


def test_a_start_that_fails_leaves_collection_as_it_was() -> None:
    with pytest.raises(ValueError, match="no recipe"), defer_garbage_collection():
        raise ValueError("no recipe")
    assert gc.isenabled()
