"""Execute the runs of one request: one per choice, through the queue, within the server's limits."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import anyio

from cachegraph.engine.batching.request_context import current_context, request_context
from cachegraph.errors import RunError
from cachegraph.graph.graph import Graph
from cachegraph.graph.run.events import TextDelta
from cachegraph.graph.run.result import Result

from .config import ServerLimits
from .errors import NOT_AGAIN, ApiError, api_error
from .served_graphs import Speaker
from .server_state import ServerState

__all__ = ["Call", "OnText", "generate"]

OnText = Callable[[int, str], None]  # choice number, next piece of its reply


@dataclass(frozen=True)
class Call:
    """One request, independent of its API."""

    graph: Graph
    speaker: Speaker
    inputs: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)  # GenerateSpec fields
    choices: int = 1
    session: str | None = None
    tenant: str | None = None
    warnings: Sequence[str] = ()  # parts of the request that no agent receives
    own_graph: bool = False  # made for this request, so its runs close it


async def generate(call: Call, state: ServerState, on_text: OnText | None = None) -> list[Result]:
    """Run once for each choice. The first failure cancels the others and raises ApiError.

    `on_text` receives each choice's reply in pieces, which add up to its result's text.
    """
    results: list[Result | None] = [None] * call.choices
    failed: list[ApiError] = []

    async def one(choice: int) -> None:
        try:
            async with state.queue.turn(call.tenant):
                results[choice] = result = await _run(call, choice, state.limits, on_text)
            state.ended(result, call.tenant)
        except Exception as error:  # reported to the client as an API error
            if isinstance(error, RunError) and isinstance(error.result, Result):
                state.ended(error.result, call.tenant)
            failed.append(api_error(error, call.graph.spec))
            group.cancel_scope.cancel()

    async with state.queue.reserve(call.tenant, call.choices):
        with request_context(replace(current_context(), tenant=call.tenant)):
            async with anyio.create_task_group() as group:
                for choice in range(call.choices):
                    group.start_soon(one, choice)
        if failed:
            raise failed[0]
    return [result for result in results if result is not None]


async def _run(call: Call, choice: int, limits: ServerLimits, on_text: OnText | None) -> Result:
    graph = call.graph
    if choice and (seed := call.settings.get("seed")) is not None:
        graph = graph.with_settings(seed=seed + choice)  # otherwise all choices would be identical
    with anyio.move_on_after(limits.seconds):
        if on_text is None:
            return await graph.arun(call.inputs, session=call.session)
        return await _follow(call, graph, partial(on_text, choice))
    words = f"the run took longer than the {limits.seconds:g} s that this server allows; ask for less"
    raise ApiError(504, words, "timeout", headers=NOT_AGAIN)


async def _follow(call: Call, graph: Graph, on_text: Callable[[str], None]) -> Result:
    said = ""
    async with graph.stream(call.inputs, session=call.session) as stream:
        async for event in stream:
            if call.speaker.streams and isinstance(event, TextDelta) and event.agent == call.speaker.name:
                said += event.text
                on_text(event.text)
        result = stream.result
    if result.text.startswith(said) and (rest := result.text[len(said) :]):
        on_text(rest)
    return result
