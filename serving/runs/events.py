"""The events of a run as server-sent events, which go on where a client has lost them."""

import json
from secrets import token_hex
from typing import TYPE_CHECKING

from ..event_stream import Emit, event
from .details import details
from .live_run import LiveRun

if TYPE_CHECKING:
    from cachegraph.graph.store.records import StoredRun

__all__ = ["send_events"]

EPOCH = token_hex(4)  # of this process: numbers of an earlier one mean nothing here


async def send_events(stored: "StoredRun", live: LiveRun | None, last: str | None, emit: Emit) -> None:
    """All events from behind the one that the client has seen last, until nothing is at work on the run.

    Of a run whose events are no longer here, one event `run_stored` with what the store has of it.
    """
    if live is None:
        body = {"schema_version": 1, "type": "run_stored", "run": details(stored, None)}
        emit(event(json.dumps(body), "run_stored"))
        return
    async for number, body in live.follow(_first(last)):
        data = json.dumps(body, default=str)
        emit(b"id: %s-%d\n" % (EPOCH.encode(), number) + event(data, str(body["type"])))


def _first(last: str | None) -> int:
    epoch, _, number = (last or "").partition("-")
    return int(number) + 1 if epoch == EPOCH and number.isdecimal() and len(number) < 12 else 0
