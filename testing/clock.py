"""Clock for tests of timeouts and retries: it stops while a task works, and jumps ahead when all tasks wait."""

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from typing import Any, Literal, TypeVar

import anyio
from anyio.to_thread import current_default_thread_limiter

from cachegraph.errors import ConfigError

__all__ = ["FakeClock"]

T = TypeVar("T")


class FakeClock:
    """Runs async code in an event loop whose sleeps and timeouts take no time. `now`: its time, in seconds.

    The clock jumps when the event loop has been idle for `patience` real seconds; on asyncio it also waits for anyio's
    worker threads. A model runs in its own thread, so with models set `patience` to more than one step takes.
    Times in results and events stay real.
    """

    def __init__(self, *, backend: Literal["asyncio", "trio"] = "asyncio", patience: float = 0.01):
        self.now = 0.0
        self._backend = backend
        self._patience = patience
        self._limiter: anyio.CapacityLimiter | None = None

    def run(self, function: Callable[..., Awaitable[T]], /, *args: Any, **named: Any) -> T:
        """Run an async function and return its result: `clock.run(graph.arun, question="Why?")`."""

        async def call() -> T:
            self._limiter = current_default_thread_limiter()
            return await function(*args, **named)

        if self._backend == "trio":
            return self._run_on_trio(call)
        return anyio.run(call, backend_options={"loop_factory": lambda: _Loop(self)})

    def _run_on_trio(self, call: Callable[[], Awaitable[T]]) -> T:
        try:
            from trio.testing import MockClock
        except ImportError:
            raise ConfigError("a fake clock on trio needs trio; install it with: pip install trio") from None
        clock = MockClock(autojump_threshold=self._patience)
        began = clock.current_time()
        try:
            return anyio.run(call, backend="trio", backend_options={"clock": clock})
        finally:
            self.now += clock.current_time() - began

    def idle(self, select: Callable[[float | None], list[Any]], timeout: float | None) -> list[Any]:
        """Replace a wait of `timeout` seconds: poll until nothing is pending, then jump."""
        if timeout is None or timeout <= 0:
            return select(timeout)
        while True:
            ready = select(min(timeout, self._patience))
            if ready:
                return ready
            if self._limiter is None or not self._limiter.borrowed_tokens:
                self.now += timeout
                return []


class _Selector(selectors.DefaultSelector):
    clock: FakeClock

    def select(self, timeout: float | None = None) -> list[Any]:
        return self.clock.idle(super().select, timeout)


class _Loop(asyncio.SelectorEventLoop):
    """Event loop that takes its time from a fake clock."""

    def __init__(self, clock: FakeClock):
        selector = _Selector()
        selector.clock = clock
        self._fake = clock
        super().__init__(selector)

    def time(self) -> float:
        return self._fake.now
