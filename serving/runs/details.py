"""A run as JSON for clients: from this process while it has the run, otherwise from the store."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cachegraph.graph.run.result import Result

from ..hide_paths import hide_paths
from .live_run import LiveRun, without_paths

if TYPE_CHECKING:
    from cachegraph.graph.store.records import RunInfo, StoredRun

__all__ = ["details", "summary"]


def summary(info: "RunInfo") -> dict[str, Any]:
    """Format a run for a list."""
    return {
        "id": info.id,
        "graph": info.graph,
        "status": info.status,
        "created": info.created,
        "seconds": info.seconds,
        "turns": info.turns,
    }


def details(stored: "StoredRun", live: LiveRun | None) -> dict[str, Any]:
    """Format one run. Has `result` while this process has the run, and always the replies of finished turns."""
    result = live.result if live is not None else None
    turns = {turn.turn: turn.recorded.text for turn in stored.turns}
    error = stored.outcome.error
    return {
        "id": stored.id,
        "graph": stored.graph,
        "status": stored.status,
        "created": stored.created,
        "seconds": stored.seconds,
        "inputs": dict(stored.setting.inputs),
        "text": result.text if result is not None and stored.status == "finished" else None,
        "error": hide_paths(error) if error else None,
        "questions": _questions(stored),
        "turns": turns,
        "result": _plain(result) if result is not None else None,
    }


def _questions(stored: "StoredRun") -> Mapping[str, str]:
    """Return open questions by turn."""
    asked = stored.outcome.unfinished.items()
    return {turn: unfinished.prompt or "" for turn, unfinished in asked if unfinished.status == "paused"}


def _plain(result: Result) -> Any:
    return without_paths(result.model_dump(mode="json"))
