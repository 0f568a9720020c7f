"""Delete stored responses that are old, or too many: each is a session of its own.

Clients name an earlier response by its id only, so nothing else refers to these sessions.
"""

import logging
import time

import anyio
from anyio.to_thread import run_sync

from cachegraph.agents.sessions.session_files import discard, session_sizes
from cachegraph.errors import CachegraphError

from ..sessions import RESPONSES

__all__ = ["delete_old_responses", "sweep_responses"]

EVERY = 600.0  # seconds
log = logging.getLogger("cachegraph.serving")


async def delete_old_responses(days: float, most_bytes: float) -> None:
    """Sweep now and every ten minutes, until cancelled."""
    while True:
        try:
            await run_sync(sweep_responses, days, most_bytes)
        except (CachegraphError, OSError) as error:
            log.warning("old responses can't be deleted: %s", error)
        await anyio.sleep(EVERY)


def sweep_responses(days: float, most_bytes: float) -> int:
    """Delete responses older than this, and the oldest beyond this size. Returns how many."""
    oldest, room, deleted = time.time() - days * 86_400, most_bytes, 0
    for name, changed, size in sorted(session_sizes(RESPONSES), key=lambda response: -response[1]):
        room -= size
        if changed >= oldest and room >= 0:
            continue
        try:
            discard(name)
        except CachegraphError as error:  # in use, or already deleted by another server
            log.debug("the response %s stays: %s", name, error)
        else:
            deleted += 1
    return deleted
