"""Turn a request of any API into runs of a recipe; check everything before the first run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
from pydantic import BaseModel

from cachegraph.agents.schema_threads import run_checks
from cachegraph.channels.spec import Channel
from cachegraph.common.abandoned_threads import run_or_abandon
from cachegraph.errors import CachegraphError, RecipeError
from cachegraph.graph.graph import Graph
from cachegraph.graph.recipe.inputs import check_inputs

from .changed_recipe import changed_graph
from .config import ServerLimits
from .errors import ApiError, api_error
from .generation import Call
from .inputs import ChatTurn, by_request, choose_inputs
from .served_graphs import ServedGraph
from .server_state import ServerState
from .sessions import session_of

__all__ = ["Asked", "prepare", "refuse_unsupported"]

LONG = {"json_schema", "ignore_eos", "min_new_tokens"}  # settings that may be slow to check


@dataclass(frozen=True)
class Asked:
    """A request in an API-independent form."""

    model: str
    turns: Sequence[ChatTurn]
    settings: Mapping[str, Any] = field(default_factory=dict)  # GenerateSpec fields; None: keep the recipe's value
    stop: Sequence[str] = ()  # in addition to the recipe's own
    inputs: Mapping[str, Any] = field(default_factory=dict)
    choices: int = 1
    session: str | None = None
    edges: Mapping[tuple[str, str], Channel] = field(default_factory=dict)  # other channels, by sender and receiver
    recipe: str | None = None  # the recipe as the client changed it


async def prepare(asked: Asked, state: ServerState, tenant: str | None) -> Call:
    """Prepare the runs of a request. Raises ApiError for every problem detectable before they begin."""
    served, channel = state.graphs.find(asked.model)
    state.graphs.check_ready()
    limits = state.limits
    if asked.recipe is not None:
        served = await _changed(served, asked.recipe, limits)
    given = choose_inputs(served.graph.spec.inputs, asked.turns, asked.inputs, limits.prompt_characters)
    if asked.choices > (most := min(limits.choices, limits.running + limits.waiting)):
        words = f"n is {asked.choices}, and this server gives at most {most} choices"
        raise ApiError(400, words, "invalid_value", "n")
    if asked.choices > 1 and asked.session is not None:
        raise ApiError(400, "a session continues with one reply, so n must be 1", "invalid_value", "n")
    settings = {name: value for name, value in asked.settings.items() if value is not None}
    tokens = settings.get("max_new_tokens")
    if isinstance(tokens, int | float) and tokens > limits.tokens:
        words = f"max_tokens is {tokens}, and this server allows at most {limits.tokens}"
        raise ApiError(400, words, "invalid_value", "max_tokens")
    if asked.stop:
        own = served.writer.generate.stop if served.writer is not None else ()
        settings["stop"] = tuple(dict.fromkeys([*own, *asked.stop]))
    session, own_graph = session_of(tenant, asked.session), asked.recipe is not None
    try:
        variant = await served.open(channel, asked.edges)
        graph = await _with_settings(variant.graph, settings)
        inputs = await run_checks(partial(check_inputs, graph.spec.inputs, given.inputs, remedy=by_request))
    except BaseException as error:  # also a cancelled request: its own graph must not stay open
        if own_graph:
            with anyio.CancelScope(shield=True):
                await served.graph.aclose()
        if isinstance(error, CachegraphError):
            raise api_error(error) from error
        raise
    return Call(graph, variant.speaker, inputs, settings, asked.choices, session, tenant, given.warnings, own_graph)


async def _changed(served: ServedGraph, recipe: str, limits: ServerLimits) -> ServedGraph:
    """Return a served recipe as the client changed it. Raises ApiError if it may not run like that."""
    if len(recipe) > limits.prompt_characters:
        words = f"the recipe has {len(recipe)} characters, and this server takes {limits.prompt_characters}"
        raise ApiError(400, words, "too_large", "recipe")
    try:
        return ServedGraph(await run_checks(partial(changed_graph, recipe, served.source, limits), len(recipe)))
    except RecipeError as error:
        raise api_error(error) from error


async def _with_settings(graph: Graph, settings: Mapping[str, Any]) -> Graph:
    if not settings:
        return graph
    if LONG & settings.keys():
        return await run_or_abandon(partial(graph.with_settings, **settings))
    return graph.with_settings(**settings)


def refuse_unsupported(
    request: BaseModel, neutral: Mapping[str, Sequence[Any]], reasons: Mapping[str, str] | None = None
) -> None:
    """Raise ApiError if an unsupported field has another value than its neutral ones."""
    for name, allowed in neutral.items():
        value = getattr(request, name)
        if value is None or any(value == choice and type(value) is type(choice) for choice in allowed):
            continue
        reason = (reasons or {}).get(name, "no recipe can honour it")
        raise ApiError(400, f"{name!r} is set, and {reason}; leave it out", "unsupported_parameter", name)
