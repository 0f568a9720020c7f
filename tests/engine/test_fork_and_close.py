"""Engines in a forked process, closed graphs under running agents, and threads that end: an error, never a wait."""

import os
import signal
import traceback
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from tiny import Tiny

from cachegraph.engine import pool
from cachegraph.engine.engine import Engine
from cachegraph.engine.spec import GenerateSpec, ModelSpec
from cachegraph.errors import ModelError

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


class PanicException(BaseException):
    """As pyo3's."""


def in_a_fork(work: Callable[[], object]) -> int:
    """Its exit code: 0 where the work raised ModelError that names the fork."""
    child = os.fork()
    if not child:
        signal.alarm(60)  # ends it, were it to wait for ever
        code = 1
        try:
            work()
        except ModelError as error:
            code = 0 if "was loaded before os.fork()" in str(error) else 2  # noqa: PT017
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def engine(tiny: Tiny) -> Any:
    engine = Engine(tiny("llama"), 10**8)
    anyio.run(engine.prefill, [1, 2, 3])
    yield engine
    engine.close()


def test_a_fork_after_load_is_told_so_wherever_it_asks_the_engine(engine: Engine) -> None:
    asked: list[Callable[[], object]] = [
        lambda: anyio.run(engine.prefill, [1, 2]),
        lambda: anyio.run(lambda: engine.generate([1, 2], spec=GenerateSpec(max_new_tokens=2))),
        lambda: anyio.run(engine.prefill_many, [[1], [2]]),
        lambda: anyio.run(engine.call, int),
    ]
    assert [in_a_fork(work) for work in asked] == [0, 0, 0, 0]
    anyio.run(engine.prefill, [1, 2, 3])  # this process goes on


def test_a_fork_while_locks_are_held_can_close_and_is_refused_a_model(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work() -> None:
        engine.kv_use()
        engine.close()
        pool._lease(ModelSpec(source="m"), anyio.Path(".")._path)

    monkeypatch.setattr(pool, "_process", os.getpid())
    with engine._starting, pool._lock:
        assert in_a_fork(work) == 0


def test_a_panic_in_the_engines_thread_fails_who_asked_and_nobody_else(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def panic(*_: Any, **__: Any) -> Any:
        raise PanicException("index out of bounds")

    with monkeypatch.context() as patch:
        patch.setattr("cachegraph.engine.batching.engine_loop.forward", panic)
        with pytest.raises(ModelError, match="failed in a forward pass: PanicException: index out of bounds"):
            anyio.run(engine.prefill, [1, 2])
    anyio.run(engine.prefill, [1, 2])


def test_a_thread_that_fails_is_replaced_and_leaves_nobody_waiting(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert engine._loop is not None
    rows = engine._loop._admission

    def fail() -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr(rows, "next_step", fail)
    with pytest.raises(ModelError, match="a bug"):
        anyio.run(engine.prefill, [1, 2])
    anyio.run(engine.prefill, [1, 2])


def test_a_request_that_comes_as_the_thread_fails_is_answered(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    anyio.run(engine.prefill, [1, 2])
    loop = engine._loop
    assert loop is not None
    inbox, thread = loop._inbox, loop._thread

    class FailsBefore:
        """Puts work into the inbox after the thread has failed, unless the thread waits for it."""

        def put(self, work: object) -> None:
            inbox.put(fail)
            thread.join(0.3)
            inbox.put(work)  # type: ignore[arg-type]

        def __getattr__(self, name: str) -> Any:
            return getattr(inbox, name)

    def fail() -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(loop, "_inbox", FailsBefore())

    async def ask() -> None:
        with anyio.fail_after(60), pytest.raises(ModelError, match="a bug"):
            await engine.prefill([1, 2])

    anyio.run(ask)
    anyio.run(engine.prefill, [1, 2])
