"""Records one run: its finished turns and its result."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from sqlalchemy import update

from ..run.result import Result
from ..run.turn_log import RecordedTurn
from .records import Outcome, Unfinished
from .schema import runs

if TYPE_CHECKING:
    from .database import Database
    from .writer import Writer

__all__ = ["RunRecorder"]

DONE = ("finished", "skipped", "not_started", "paused")  # a paused turn is stored by its id, also inside a sub-graph


class RunRecorder:
    """Turn log of a run that this process owns."""

    def __init__(self, database: "Database", writer: "Writer", run: str, token: str, known: Mapping[str, RecordedTurn]):
        self.run = run
        self._database = database
        self._writer = writer
        self._token = token
        self._asked: dict[str, Unfinished] = {}
        self._known = known  # turns known at resumption; excludes newly recorded ones

    def recall(self, turn: str) -> RecordedTurn | None:
        return self._known.get(turn)

    async def record(self, turn: str, recorded: RecordedTurn) -> None:
        await self._writer.add(self.run, turn, to_json(recorded))

    def asked(self, turn: str, question: str) -> None:
        self._asked[turn] = Unfinished("paused", prompt=question)

    def end(self, result: Result) -> None:
        """Record the run's outcome and release it."""
        self._writer.release(self.run)
        outcome = Outcome(result.error, {**_unfinished(result), **self._asked}).to_json()
        owned = (runs.c.id == self.run) & (runs.c.token == self._token)
        seconds = runs.c.seconds + result.seconds
        values = {"status": result.status, "outcome": outcome, "owner": None, "heartbeat": None, "seconds": seconds}
        with self._database.writing() as connection:
            connection.execute(update(runs).where(owned).values(values))

    def park(self) -> None:
        """Release an unfinished run; the store lists it as interrupted, and it can be resumed."""
        self._writer.release(self.run)
        owned = (runs.c.id == self.run) & (runs.c.token == self._token)
        with self._database.writing() as connection:
            connection.execute(
                update(runs).where(owned).values(owner=None, heartbeat=None, outcome=Outcome().to_json())
            )


def to_json(recorded: RecordedTurn) -> str:
    return json.dumps(vars(recorded), separators=(",", ":"))


def _unfinished(result: Result) -> dict[str, Unfinished]:
    return {
        agent.turn or name: Unfinished(agent.status, agent.error, agent.prompt)
        for name, agent in result.agents.items()
        if agent.status not in DONE
    }
