"""The events of a run as server-sent events, which a client can resume after a disconnect."""

import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING

from ..event_stream import event
from .details import details
from .live_run import EventsGoneError, LiveRun

if TYPE_CHECKING:
    from cachegraph.graph.store.records import StoredRun

__all__ = ["run_events"]


async def run_events(
    get: Callable[[], Awaitable["StoredRun"]], live: LiveRun | None, last: str | None
) -> AsyncGenerator[bytes, None]:
    """Yield all events after the client's last one, until the run is no longer live.

    If the next event is no longer in memory, yield one event `run_stored` with the stored run, and end.
    """
    if live is None:
        yield _stored(await get(), None)
        return
    try:
        async with aclosing(live.follow(_first(live, last))) as events:
            async for number, encoded in events:
                yield f"id: {live.event_id(number)}\n".encode() + event(encoded.data, encoded.type)
    except EventsGoneError:  # a client that connects again continues with the oldest event in memory
        yield f"id: {live.event_id(live.dropped - 1)}\n".encode() + _stored(await get(), live)


def _stored(stored: "StoredRun", live: LiveRun | None) -> bytes:
    body = {"schema_version": 1, "type": "run_stored", "run": details(stored, live)}
    return event(json.dumps(body, default=str), "run_stored")


def _first(live: LiveRun, last: str | None) -> int:
    epoch, _, number = (last or "").partition("-")
    return int(number) + 1 if epoch == live.epoch and number.isdecimal() and len(number) < 12 else 0
