"""The log of a server as JSON lines: one for every run, and one for every warning.

A run's line names no text of the run, unless `content` is asked for.
"""

import hashlib
import json
import logging
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from cachegraph.graph.run.result import Result

from .hide_paths import hide_paths
from .usage import answer_of

__all__ = ["RunLog", "log_address", "log_as_json"]

FIELDS = "cachegraph_fields"  # of a log record
runs = logging.getLogger("cachegraph.serving.runs")


class RunLog:
    """Logs ended runs at the level INFO of the logger `cachegraph.serving.runs`."""

    def __init__(self, content: bool = False):
        self._content = content

    def run(self, result: Result, tenant: str | None) -> None:
        if not runs.isEnabledFor(logging.INFO):
            return
        answer, tokens = answer_of(result), result.totals.tokens
        first = answer.timing.first_token if answer is not None else None
        fields: dict[str, Any] = {
            "run_id": result.run_id,
            "recipe": result.graph,
            "tenant": hashlib.sha256(tenant.encode()).hexdigest()[:16] if tenant is not None else None,
            "status": result.status,
            "ms": round(result.seconds * 1e3, 1),
            "first_token_ms": round(((answer.started or 0.0) + first) * 1e3, 1) if answer and first else None,
            "tokens": {"prefilled": tokens.prefilled, "cached": tokens.reused, "generated": tokens.generated},
            "fallbacks": sum(traffic.fallbacks for traffic in result.traffic.values()),
            "failed": sorted(name for name, agent in result.agents.items() if agent.status == "failed"),
        }
        if self._content:
            fields |= {"text": result.text, "error": hide_paths(result.error) if result.error else None}
        runs.info("run %s", result.status, extra={FIELDS: {"event": "run", **fields}})


class _JsonLines(logging.Formatter):
    """One JSON object a record; a traceback is one of its fields."""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, FIELDS, None)
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
        }
        if fields is not None:
            line |= fields
        else:
            line |= {"event": "log", "logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_address(names: Sequence[str], url: str) -> None:
    """Log that a server has started."""
    runs.info(
        "serving %s at %s", ", ".join(names), url, extra={FIELDS: {"event": "start", "recipes": names, "url": url}}
    )


def log_as_json() -> None:
    """Write the records of cachegraph's loggers to stderr as JSON lines: warnings and errors, and every run."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines())
    logging.getLogger().addHandler(handler)
    runs.setLevel(logging.INFO)
