"""/v1/responses."""

from functools import partial

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cachegraph.graph.run.result import Result

from ..connection import while_connected
from ..event_stream import EventStream
from ..generation import Call, OnText, generate
from ..http_body import read_body
from ..prepare import prepare
from ..server_state import ServerState, state_of, tenant_of
from ..stream_answer import stream_answer
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
    reply = partial(_reply, state, call, answer, session)
    if body.stream:
        return EventStream(partial(stream_answer, answer, reply), refuse, complain)
    result = await while_connected(request.receive, reply)
    return JSONResponse(answer.whole(result))


async def _reply(
    state: ServerState, call: Call, answer: ResponseAnswer, session: str | None, on_text: OnText | None = None
) -> Result:
    async with response_session(answer.request, session, call.tenant):
        (result,) = await generate(call, state, on_text)
    return result
