"""The server as an ASGI application: routes and middleware."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from cachegraph.graph.graph import Graph

from .anthropic.errors import refuse as refuse_message
from .anthropic.messages import count_tokens, create_message
from .config import ServerConfig
from .edit import check_recipe, show_recipe, show_schema
from .errors import ApiError
from .graphs import list_graphs, show_graph
from .guard import Guard
from .health import show_health, show_ready
from .metrics import Metrics, show_metrics
from .openai.chat_completions import create_chat_completion
from .openai.errors import refuse
from .openai.models import list_models, show_model
from .openai.response_retention import delete_old_responses
from .openai.responses import create_response
from .openapi import show_openapi
from .reports.folder import Reports
from .reports.routes import list_reports, open_report, view_report
from .run_log import RunLog
from .run_queue import RunQueue
from .runs.board import RunBoard
from .runs.routes import run_routes
from .served_graphs import ServedGraphs
from .server_state import ServerState
from .studio.page import show_file, show_page

__all__ = ["create_app"]

OnFailure = Callable[[Exception], None]

PHRASES = {404: "there is nothing at {path!r}", 405: "{path!r} takes no {method}"}


def create_app(
    graphs: Sequence[Graph], config: ServerConfig | None = None, on_failure: OnFailure | None = None
) -> Starlette:
    """Create the server of these graphs. It loads their models at startup and unloads them at shutdown.

    `on_failure` receives the error if loading fails.
    """
    config = config or ServerConfig()
    served = ServedGraphs(graphs)
    queue = RunQueue(config.limits.running, config.limits.waiting, len(config.tenants))
    board, metrics, run_log = RunBoard(served, queue, config), Metrics(), RunLog(config.log_content)
    state = ServerState(config, served, queue, board, metrics, run_log, Reports(config.reports))
    board.on_end = state.ended

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with anyio.create_task_group() as group:
            state.board.group = group
            group.start_soon(_load, state, on_failure)
            group.start_soon(delete_old_responses, config.response_days, config.response_bytes)
            try:
                yield
            finally:
                if not state.queue.stopping:  # otherwise the stopping process cancels slow runs
                    state.cancel()
                await state.board.drained()
                group.cancel_scope.cancel()
        await state.graphs.close()

    app = Starlette(
        routes=_routes(),
        middleware=[Middleware(Guard, config=config, refuse=_refuse, metrics=metrics)],
        exception_handlers={ApiError: _on_error, HTTPException: _on_http_error},
        lifespan=lifespan,
    )
    app.state.server = state
    return app


async def _load(state: ServerState, on_failure: OnFailure | None) -> None:
    try:
        await state.graphs.open()
        await state.board.resume_interrupted()
    except Exception as error:  # ends the server, in the words of its command
        if on_failure is None:
            raise
        on_failure(error)


def _routes() -> list[BaseRoute]:
    return [
        Route("/", show_page),
        Route("/studio/{file}", show_file),
        Route("/v1/models", list_models),
        Route("/v1/models/{model}", show_model),
        Route("/v1/chat/completions", create_chat_completion, methods=["POST"]),
        Route("/v1/responses", create_response, methods=["POST"]),
        Route("/v1/messages", create_message, methods=["POST"]),
        Route("/v1/messages/count_tokens", count_tokens, methods=["POST"]),
        *run_routes(),
        Route("/graphs", list_graphs),
        Route("/graphs/{graph}", show_graph),
        Route("/graphs/{graph}/recipe", show_recipe),
        Route("/graphs/{graph}/check", check_recipe, methods=["POST"]),
        Route("/recipe.schema.json", show_schema),
        Route("/reports", list_reports),
        Route("/reports/{report}", open_report, methods=["POST"]),
        Route("/reports/view/{ticket}", view_report),
        Route("/metrics", show_metrics),
        Route("/openapi.json", show_openapi),
        Route("/health", show_health),
        Route("/ready", show_ready),
    ]


def _refuse(path: str, error: Exception) -> Response:
    """Format the error for the API of this path."""
    return refuse_message(error) if path.startswith("/v1/messages") else refuse(error)


async def _on_error(request: Request, error: Exception) -> Response:
    return _refuse(request.url.path, error)


async def _on_http_error(request: Request, error: Exception) -> Response:
    """Handle Starlette's own errors: unknown path or method."""
    assert isinstance(error, HTTPException)
    path = request.url.path[:200]
    phrase = PHRASES.get(error.status_code)
    words = phrase.format(path=path, method=request.method) if phrase else str(error.detail)
    headers = dict(error.headers or {})
    if error.status_code == 405:  # several routes may have one path
        headers["Allow"] = ", ".join(_methods(request))
    return _refuse(path, ApiError(error.status_code, words, headers=headers))


def _methods(request: Request) -> list[str]:
    """Return the methods that a request's path takes."""
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    return sorted(
        {method for route in routes if route.path_regex.match(request.url.path) for method in route.methods or ()}
    )
