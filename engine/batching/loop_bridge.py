"""Passes items from an engine's thread to a task of asyncio or trio."""

import asyncio
import sys
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import anyio

__all__ = ["Mailbox"]

ItemT = TypeVar("ItemT")


class Mailbox(Generic[ItemT]):
    """One task reads, one other thread posts. Create it in the reading task."""

    def __init__(self) -> None:
        self._items: deque[ItemT] = deque()
        self._arrived = anyio.Event()
        self._soon = _run_soon()
        self._closed = False

    def close(self) -> None:
        """Drop all items, and those of later posts. The reader has left, and an item may hold a cache."""
        self._closed = True
        self._items.clear()

    def post(self, item: ItemT) -> None:
        """Leave an item and wake the reader, from any thread. Items for a loop that has ended are dropped."""
        self._items.append(item)
        if self._closed:
            self._items.clear()
            return
        try:
            self._soon(self._wake)
        except RuntimeError:  # the loop has ended, and with it the reader
            self._items.clear()

    def _wake(self) -> None:
        self._arrived.set()

    def __aiter__(self) -> "Mailbox[ItemT]":
        return self

    async def __anext__(self) -> ItemT:
        await self._wait()
        return self._items.popleft()

    async def take_all(self) -> list[ItemT]:
        """All items, at least one."""
        await self._wait()
        return [self._items.popleft() for _ in range(len(self._items))]

    async def _wait(self) -> None:
        while not self._items:
            await self._arrived.wait()
            self._arrived = anyio.Event()


def _run_soon() -> Callable[[Callable[[], None]], Any]:
    """The running loop's function for scheduling calls from other threads, without waiting."""
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_task():
        return trio.lowlevel.current_trio_token().run_sync_soon  # type: ignore[no-any-return]
    return asyncio.get_running_loop().call_soon_threadsafe
