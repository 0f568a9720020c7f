"""/v1/chat/completions."""

from functools import partial

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..connection import while_connected
from ..event_stream import Emit, EventStream
from ..generation import Call, generate
from ..http_body import read_body
from ..prepare import prepare
from ..server_state import ServerState, state_of, tenant_of
from .chat_request import ChatRequest, asked_of
from .chat_response import ChatAnswer
from .errors import complain, refuse

__all__ = ["create_chat_completion"]


async def create_chat_completion(request: Request) -> Response:
    """Reply to a conversation, as JSON or as server-sent events."""
    state = state_of(request)
    body = await read_body(request, ChatRequest, state.limits.body_bytes)
    call = await prepare(asked_of(body), state, tenant_of(request))
    answer = ChatAnswer(body.model, call.speaker.name, call.warnings)
    if body.stream:
        with_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        return EventStream(partial(_stream, state, call, answer, with_usage), refuse, complain)
    results = await while_connected(request.receive, partial(generate, call, state))
    return JSONResponse(answer.whole(results))


async def _stream(state: ServerState, call: Call, answer: ChatAnswer, with_usage: bool, emit: Emit) -> None:
    started: set[int] = set()

    def begin(choice: int) -> None:
        if choice not in started:
            started.add(choice)
            emit(answer.begin(choice))

    def on_text(choice: int, text: str) -> None:
        begin(choice)
        emit(answer.text(choice, text))

    results = await generate(call, state, on_text)
    for choice in range(len(results)):
        begin(choice)
    answer.end(results, emit, with_usage=with_usage)
