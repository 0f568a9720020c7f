"""/runs: start, list, show, watch, cancel, answer."""

import json
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from anyio.to_thread import run_sync
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from cachegraph.channels.spec import Channel

from ..describe import stored_graph
from ..edges import read_edges
from ..errors import ApiError
from ..event_stream import PacedEventStream
from ..http_body import read_body
from ..openai.errors import complain, refuse
from ..prepare import Asked, prepare
from ..server_state import ServerState, state_of, tenant_of
from .details import details, summary
from .events import run_events
from .prompts import show_prompt
from .replay import Replay, replay

if TYPE_CHECKING:
    from cachegraph.graph.store.records import StoredRun

__all__ = ["run_routes"]

STATUSES = ("running", "finished", "partial", "paused", "failed", "cancelled", "interrupted")
MOST = 200  # runs per list
MOST_SKIPPED = 1_000_000


class RunRequest(BaseModel):
    """The body of a request to start a run."""

    model_config = ConfigDict(extra="forbid")

    graph: str  # `recipe` or `recipe@channel`
    inputs: dict[str, Any] = {}
    settings: dict[str, Any] = {}  # `generate` fields for the outputs
    session: str | None = None
    channels: dict[str, Channel] = {}  # other channels of single edges, by `sender:receiver`
    recipe: str | None = None  # the recipe as the client changed it


class AnswerRequest(BaseModel):
    """A person's answer to a paused run."""

    model_config = ConfigDict(extra="forbid")

    answer: str
    turn: str | None = None  # the turn whose question it answers, if there are several


def run_routes() -> list[BaseRoute]:
    return [
        Route("/runs", list_runs, methods=["GET"]),
        Route("/runs", begin_run, methods=["POST"]),
        Route("/runs/{run}", show_run, methods=["GET"]),
        Route("/runs/{run}/events", watch_run, methods=["GET"]),
        Route("/runs/{run}/replay", replay_run, methods=["GET"]),
        Route("/runs/{run}/prompt", show_prompt, methods=["GET"]),
        Route("/runs/{run}/cancel", cancel_run, methods=["POST"]),
        Route("/runs/{run}/answer", answer_run, methods=["POST"]),
    ]


async def begin_run(request: Request) -> Response:
    """Start a run and return its id, after it has entered the store.

    Raises ApiError (403) for a changed recipe without --allow-upload.
    """
    state, tenant = state_of(request), tenant_of(request)
    body = await read_body(request, RunRequest, state.limits.body_bytes)
    if body.recipe is not None and not state.config.allow_upload:
        words = "this server runs its own recipes only; `cachegraph serve --allow-upload` lets clients change them"
        raise ApiError(403, words, "not_allowed", "recipe")
    asked = Asked(
        body.graph,
        (),
        body.settings,
        inputs=body.inputs,
        session=body.session,
        edges=read_edges(body.channels),
        recipe=body.recipe,
    )
    call = await prepare(asked, state, tenant)
    live = await state.board.begin(call, tenant)
    return await _show(state, live.id, tenant, 201, {"Location": f"/runs/{live.id}"})


async def list_runs(request: Request) -> Response:
    """List runs, newest first. Raises ApiError (400) for an unknown status."""
    asked = request.query_params
    status = asked.get("status")
    if status is not None and status not in STATUSES:
        words = f"there is no status {status[:40]!r}; there is {', '.join(map(repr, STATUSES))}"
        raise ApiError(400, words, "invalid_value", "status")
    limit, skip = _number(asked, "limit", 20, MOST), _number(asked, "skip", 0, MOST_SKIPPED)
    found = await state_of(request).board.list(tenant_of(request), limit, skip, asked.get("graph"), status)
    return JSONResponse({"runs": [summary(info) for info in found]})


async def show_run(request: Request) -> Response:
    """Show one run."""
    return await _show(state_of(request), request.path_params["run"], tenant_of(request))


async def watch_run(request: Request) -> Response:
    """Stream the events of a run, after `Last-Event-ID`."""
    board, run = state_of(request).board, request.path_params["run"]
    get = partial(board.get, run, tenant_of(request))
    await get()
    events = run_events(get, board.live(run), request.headers.get("last-event-id"))
    return PacedEventStream(events, refuse, complain)


async def replay_run(request: Request) -> Response:
    """Show the recipe of a run, and its events so far: from memory, or rebuilt from the store."""
    board, run = state_of(request).board, request.path_params["run"]
    stored = await board.get(run, tenant_of(request))
    found = replay(stored, board.live(run))
    body = await run_sync(_replay_json, stored, found)
    return Response(body, media_type="application/json")


def _replay_json(stored: "StoredRun", found: Replay) -> str:
    graph, last = json.dumps(stored_graph(stored), default=str), json.dumps(found.last)
    return f'{{"graph":{graph},"events":[{",".join(found.events())}],"last":{last}}}'


async def cancel_run(request: Request) -> Response:
    """Cancel a run and show its final state."""
    state, run, tenant = state_of(request), request.path_params["run"], tenant_of(request)
    await state.board.cancel(run, tenant)
    return await _show(state, run, tenant)


async def answer_run(request: Request) -> Response:
    """Answer and resume a paused run."""
    state, run, tenant = state_of(request), request.path_params["run"], tenant_of(request)
    body = await read_body(request, AnswerRequest, state.limits.body_bytes)
    await state.board.answer(run, body.answer, body.turn, tenant)
    return await _show(state, run, tenant)


async def _show(
    state: ServerState, run: str, tenant: str | None, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    stored = await state.board.get(run, tenant)
    return JSONResponse(details(stored, state.board.live(run)), status, headers=dict(headers or {}))


def _number(asked: Mapping[str, str], name: str, usual: int, most: int) -> int:
    text = asked.get(name, str(usual))
    if not (text.isascii() and text.isdecimal()) or len(text) > 9 or int(text) > most:
        raise ApiError(400, f"{name} must be a number up to {most}", "invalid_value", name)
    return int(text)
