"""/v1/responses."""

from functools import partial

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cachegraph.graph.run.result import Result

from ..connection import while_connected
from ..event_stream import Emit, EventStream
from ..generation import Call, OnText, generate
from ..http_body import read_body
from ..prepare import prepare
from ..server_state import ServerState, state_of, tenant_of
from .errors import complain, refuse
from .response_object import ResponseAnswer
from .response_request import ResponseRequest, asked_of
from .response_sessions import new_id, response_session, session_name

__all__ = ["create_response"]


async def create_response(request: Request) -> Response:
    """Reply, as JSON or as server-sent events."""
    state = state_of(request)
    body = await read_body(request, ResponseRequest, state.limits.body_bytes)
    served, _ = state.graphs.find(body.model)
    identity = new_id()
    session = session_name(served, body, identity)
    call = await prepare(asked_of(body, session), state, tenant_of(request))
    answer = ResponseAnswer(identity, body, call.speaker.name, call.warnings)
    if body.stream:
        return EventStream(partial(_stream, state, call, answer, session), refuse, complain)
    result = await while_connected(request.receive, partial(_generate, state, call, answer, session))
    return JSONResponse(answer.whole(result))


async def _generate(
    state: ServerState, call: Call, answer: ResponseAnswer, session: str | None, on_text: OnText | None = None
) -> Result:
    async with response_session(answer.request, session, call.tenant):
        (result,) = await generate(call, state, on_text)
    return result


async def _stream(state: ServerState, call: Call, answer: ResponseAnswer, session: str | None, emit: Emit) -> None:
    begun = False

    def begin() -> None:
        nonlocal begun
        for each in () if begun else answer.begin():
            emit(each)
        begun = True

    def on_text(choice: int, text: str) -> None:
        begin()
        emit(answer.text(text))

    result = await _generate(state, call, answer, session, on_text)
    begin()
    for each in answer.end(result):
        emit(each)
