"""/v1/messages and /v1/messages/count_tokens."""

from functools import partial

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cachegraph.agents.prompt.render_threads import TextWork
from cachegraph.graph.run.result import Result

from ..connection import while_connected
from ..event_stream import EventStream
from ..generation import Call, OnText, generate
from ..http_body import read_body
from ..prepare import prepare, refuse_unsupported
from ..served_graphs import ServedGraph
from ..server_state import ServerState, state_of, tenant_of
from ..stream_answer import stream_answer
from .errors import complain, refuse
from .message_request import NEUTRAL, OWN_TOOLS, CountRequest, MessageRequest, asked_of, turns_of
from .message_response import MessageAnswer

__all__ = ["count_tokens", "create_message"]


async def create_message(request: Request) -> Response:
    """Reply to a conversation, as JSON or as server-sent events."""
    state = state_of(request)
    body = await read_body(request, MessageRequest, state.limits.body_bytes)
    call = await prepare(asked_of(body), state, tenant_of(request))
    stops = _certain_stops(body, state.graphs.find(body.model)[0], call)
    answer = MessageAnswer(body.model, call.speaker.name, call.warnings, stops)
    if body.stream:
        return EventStream(partial(stream_answer, answer, partial(_reply, state, call)), refuse, complain)
    result = await while_connected(request.receive, partial(_reply, state, call))
    return JSONResponse(answer.whole(result))


def _certain_stops(body: MessageRequest, served: ServedGraph, call: Call) -> tuple[str, ...]:
    """Return the caller's stop strings if only they can cause the finish reason `stop`."""
    writer = served.writer
    others = writer is None or writer.generate.stop or writer.generate.json_schema is not None
    is_local = call.speaker.agent.peer().sharer is not None  # endpoints report `stop` for every end
    return tuple(body.stop_sequences or ()) if is_local and not others else ()


async def _reply(state: ServerState, call: Call, on_text: OnText | None = None) -> Result:
    (result,) = await generate(call, state, on_text)
    return result


async def count_tokens(request: Request) -> Response:
    """Count a conversation's tokens for the agent that writes the reply."""
    state = state_of(request)
    body = await read_body(request, CountRequest, state.limits.body_bytes)
    refuse_unsupported(body, {name: NEUTRAL[name] for name in NEUTRAL if hasattr(body, name)}, {"tools": OWN_TOOLS})
    served, channel = state.graphs.find(body.model)
    state.graphs.check_ready()
    variant = await served.open(channel)
    texts = [turn.content for turn in turns_of(body)]
    return JSONResponse({"input_tokens": await TextWork().run(partial(variant.speaker.count_tokens, texts))})
