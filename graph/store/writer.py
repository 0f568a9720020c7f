"""The thread that commits. What several runs record at the same time becomes one transaction.

It also gives each run's sign of life, and sees by the same statement whether the run is still this process's own.
"""

import threading
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from time import monotonic, time

from sqlalchemy import Connection, bindparam, update

from cachegraph.engine.mailbox import Mailbox
from cachegraph.errors import CachegraphError, RunError

from .database import Database
from .owner import BEAT
from .schema import runs, turns

__all__ = ["Writer"]

MOST = 256  # entries a transaction

ADD = turns.insert()
SIGN = (
    update(runs)
    .where(runs.c.id == bindparam("run"), runs.c.token == bindparam("its_token"))
    .values(heartbeat=bindparam("now"))
)


@dataclass(frozen=True, eq=False)
class _Entry:
    run: str
    turn: str
    body: str
    done: Mailbox[Exception | None]


_Queue = SimpleQueue[_Entry | None]  # None: nobody records any more


class Writer:
    """Commits for all runs of a store that this process is at work on; its thread lives as long as there is one."""

    def __init__(self, database: Database):
        self._database = database
        self._lock = threading.Lock()
        self._held: dict[str, str] = {}  # run, token
        self._queue: _Queue | None = None
        self._signed = monotonic()

    def hold(self, run: str, token: str) -> None:
        """Give this run's sign of life from now on."""
        with self._lock:
            self._held[run] = token
            if self._queue is None:
                self._queue = SimpleQueue()
                threading.Thread(target=self._work, args=(self._queue,), name="cachegraph-store", daemon=True).start()

    def release(self, run: str) -> None:
        """No longer give it."""
        with self._lock:
            self._held.pop(run, None)
            if not self._held and self._queue is not None:
                self._queue.put(None)
                self._queue = None

    async def add(self, run: str, turn: str, body: str) -> None:
        """Returns when the turn is on disk. Raises ConfigError, or RunError if the run is another process's by now."""
        assert self._queue is not None
        done: Mailbox[Exception | None] = Mailbox()
        self._queue.put(_Entry(run, turn, body, done))
        error = await anext(done)
        if error is not None:
            raise error

    def _work(self, queue: _Queue) -> None:
        while True:
            batch = _next(queue)
            entries = [entry for entry in batch if entry is not None]
            outcome = self._commit(entries)
            for entry in entries:
                entry.done.post(outcome.get(entry.run))
            if None in batch:
                return

    def _commit(self, entries: list[_Entry]) -> dict[str, Exception]:
        """Write the entries and the signs of life; gives what went wrong, by run."""
        with self._lock:
            held = dict(self._held)
        all_due = monotonic() - self._signed > BEAT
        signing = list(held if all_due else {entry.run: None for entry in entries})
        if not signing:
            return {}
        try:
            with self._database.writing() as connection:
                lost = {run for run in signing if not _sign(connection, run, held.get(run, ""))}
                kept = [entry for entry in entries if entry.run not in lost]
                if kept:
                    now = time()
                    connection.execute(ADD, [_row(entry, now) for entry in kept])
        except CachegraphError as error:
            return {entry.run: error for entry in entries}
        if all_due:
            self._signed = monotonic()
        return {run: _taken(run) for run in lost}


def _next(queue: _Queue) -> list[_Entry | None]:
    """What has come by now; nothing when it is time for a sign of life."""
    batch: list[_Entry | None] = []
    try:
        batch.append(queue.get(timeout=BEAT))
        while len(batch) < MOST:
            batch.append(queue.get_nowait())
    except Empty:
        pass
    return batch


def _sign(connection: Connection, run: str, token: str) -> bool:
    return connection.execute(SIGN, {"run": run, "its_token": token, "now": time()}).rowcount == 1


def _row(entry: _Entry, now: float) -> dict[str, object]:
    return {"run": entry.run, "turn": entry.turn, "recorded": now, "body": entry.body}


def _taken(run: str) -> RunError:
    return RunError(f"run {run!r} was removed, or another process has taken it over; this one has stopped recording it")
