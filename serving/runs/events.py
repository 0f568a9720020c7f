"""The events of a run as server-sent events, which a client can resume after a disconnect."""

import json
from secrets import token_hex
from typing import TYPE_CHECKING

from ..event_stream import Emit, event
from .details import details
from .live_run import LiveRun

if TYPE_CHECKING:
    from cachegraph.graph.store.records import StoredRun

__all__ = ["send_events"]

EPOCH = token_hex(4)  # per process: an earlier process's event numbers are invalid


async def send_events(stored: "StoredRun", live: LiveRun | None, last: str | None, emit: Emit) -> None:
    """Send all events after the client's last one, until the run is no longer live.

    If the run's events are no longer in memory, send one event `run_stored` with the stored run.
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
