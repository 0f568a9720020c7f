"""State that all requests share."""

from dataclasses import dataclass
from typing import cast

from starlette.requests import Request

from cachegraph.graph.run.result import Result

from .config import ServerConfig, ServerLimits
from .metrics import Metrics
from .reports.folder import Reports
from .run_log import RunLog
from .run_queue import RunQueue
from .runs.board import RunBoard
from .served_graphs import ServedGraphs

__all__ = ["ServerState", "state_of", "tenant_of"]


@dataclass(frozen=True)
class ServerState:
    """The recipes, the run queue, and the limits of a request."""

    config: ServerConfig
    graphs: ServedGraphs
    queue: RunQueue
    board: RunBoard
    metrics: Metrics
    run_log: RunLog
    reports: Reports

    def ended(self, result: Result, tenant: str | None, changed: bool = False) -> None:
        """Count and log an ended run."""
        self.metrics.run(result, edges=not changed)
        self.run_log.run(result, tenant)

    def cancel(self) -> None:
        """Cancel everything: park stored runs, and tell clients that the server stops."""
        self.board.park()
        self.queue.cancel()

    @property
    def limits(self) -> ServerLimits:
        return self.config.limits


def state_of(request: Request) -> ServerState:
    return cast("ServerState", request.app.state.server)


def tenant_of(request: Request) -> str | None:
    """Return the tenant of a request; None if the server has no keys."""
    tenant = request.scope.get("cachegraph.tenant")
    return tenant if isinstance(tenant, str) else None
