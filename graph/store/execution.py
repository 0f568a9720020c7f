"""A run that records itself."""

from collections.abc import Callable
from typing import Any

import anyio
from anyio.to_thread import run_sync

from cachegraph.common.abandoned_threads import acquire_in_thread

from ..run.result import Result
from ..run.run import CANCELLED, Run
from .run_recorder import RunRecorder

__all__ = ["StoredExecution"]


class StoredExecution(Run):
    """A run with a recorder, which opens when the run begins and records its outcome."""

    def __init__(self, *args: Any, open_session: Callable[[], RunRecorder], **options: Any):
        super().__init__(*args, **options)
        self._open_session = open_session
        self._session: RunRecorder | None = None
        self._entering: anyio.Lock | None = None

    @property
    def result(self) -> Result:
        run = self._session.run if self._session is not None else None
        return super().result.model_copy(update={"run_id": run})

    async def enter(self) -> str | None:
        self._entering = self._entering or anyio.Lock()  # one task may enter the run while another executes it
        async with self._entering:
            if self._session is None:
                self._session = self._turn_log = await acquire_in_thread(self._open_session, self._leave)
        return self._session.run

    async def execute(self) -> Result:
        await self.enter()
        session = self._session
        assert session is not None
        try:
            return await super().execute()
        finally:
            with anyio.CancelScope(shield=True):
                await (run_sync(session.park) if self.parks else run_sync(session.end, self.result))

    def _leave(self, session: RunRecorder) -> None:
        """Record that the run was cancelled while a thread entered it into the store."""
        if self.parks:
            session.park()
        else:
            session.end(self.result.model_copy(update={"status": "cancelled", "error": CANCELLED}))
