"""/v1/chat/completions: a conversation in, a recipe's reply out."""

from functools import partial

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..connection import while_connected
from ..errors import ApiError
from ..event_stream import Emit, EventStream
from ..generation import Call, generate, prepare
from ..http_body import read_body
from ..inputs import choose_inputs
from ..server_state import ServerState, state_of, tenant_of
from ..sessions import session_of
from .chat_request import ChatRequest, settings_of, turns_of
from .chat_response import ChatAnswer
from .errors import complain, refuse

__all__ = ["create_chat_completion"]


async def create_chat_completion(request: Request) -> Response:
    """Answer a conversation, at once or as server-sent events."""
    state = state_of(request)
    body = await read_body(request, ChatRequest, state.limits.body_bytes)
    call, answer = await _prepare(body, state, tenant_of(request))
    if body.stream:
        with_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        return EventStream(partial(_stream, state, call, answer, with_usage), refuse, complain)
    results = await while_connected(request.receive, partial(generate, call, state.queue, state.limits))
    return JSONResponse(answer.whole(results))


async def _prepare(body: ChatRequest, state: ServerState, tenant: str | None) -> tuple[Call, ChatAnswer]:
    served, channel = state.graphs.find(body.model)
    state.graphs.check_ready()
    settings = settings_of(body, served.writer)
    turns = turns_of(body.messages)
    given = choose_inputs(served.graph.spec.inputs, turns, body.inputs or {}, state.limits.prompt_characters)
    choices = body.n or 1
    if choices > (most := min(state.limits.choices, state.limits.running + state.limits.waiting)):
        raise ApiError(400, f"n is {choices}, and this server gives at most {most} choices", "invalid_value", "n")
    if choices > 1 and body.session is not None:
        raise ApiError(400, "a session goes on with one reply, so n must be 1", "invalid_value", "n")
    session = session_of(tenant, body.session)
    variant = await served.open(channel)
    call = await prepare(variant, given.inputs, settings, state.limits, choices=choices, session=session, tenant=tenant)
    return call, ChatAnswer(body.model, variant.speaker.name, given.warnings)


async def _stream(state: ServerState, call: Call, answer: ChatAnswer, with_usage: bool, emit: Emit) -> None:
    begun: set[int] = set()

    def begin(choice: int) -> None:
        if choice not in begun:
            begun.add(choice)
            emit(answer.begin(choice))

    def on_text(choice: int, text: str) -> None:
        begin(choice)
        emit(answer.text(choice, text))

    results = await generate(call, state.queue, state.limits, on_text)
    for choice in range(len(results)):
        begin(choice)
    answer.end(results, emit, with_usage=with_usage)
