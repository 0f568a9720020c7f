"""Read `--model_args`: the recipe, its channel, and the input that takes a request's context."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple, get_args

from cachegraph.agents.spec import AgentSpec, EndpointSpec
from cachegraph.channels.spec import Channel
from cachegraph.common.did_you_mean import suggest
from cachegraph.errors import InputError
from cachegraph.graph.graph import Graph
from cachegraph.graph.recipe.spec import GraphSpec, InputSpec

from ..variants import seeded

__all__ = ["Options", "is_bare", "read_options"]

KNOWN = ("recipe", "channel", "input", "seed", "max_length", "allow_paths", "allow_env", "batch_size")
IGNORED = ("device", "max_batch_size")  # the harness always passes a device; a recipe sets those of its models


class Options(NamedTuple):
    """A validated graph, and the settings for running requests on it."""

    graph: Graph
    input: str
    channel: Channel | None
    seed: int
    batch_size: int  # contexts that run at the same time
    max_length: int | None


def read_options(given: Mapping[str, Any], seed: int) -> Options:
    """Check the arguments and the recipe; loads no model. `seed` is the harness's own.

    Raises InputError for an unknown argument, or without a recipe.
    """
    for name in given:
        if name not in (*KNOWN, *IGNORED):
            raise InputError(f"there is no model argument {name!r}{suggest(name, KNOWN)}")
    if not given.get("recipe"):
        raise InputError("name a recipe: --model_args recipe=my.yaml")
    graph = Graph.from_yaml(
        str(given["recipe"]), allow_env=_names(given.get("allow_env")), allow_paths=given.get("allow_paths") is True
    )
    channel = _channel(given.get("channel"), graph.spec)
    seed = _whole("seed", given.get("seed", seed))
    graph = graph.with_channels(channel) if channel is not None else graph
    return Options(
        graph=seeded(graph, seed) or graph,
        input=_input(given.get("input"), graph.spec),
        channel=channel,
        seed=seed,
        batch_size=_batch_size(given.get("batch_size", "auto")),
        max_length=_whole("max_length", given["max_length"], 2) if "max_length" in given else None,
    )


def is_bare(spec: GraphSpec, name: str) -> bool:
    """Whether the graph is one bare local model: one agent whose whole prompt is the input, without a chat template."""
    (agent, *others) = spec.agents.values()
    if others or not isinstance(agent, AgentSpec) or agent.system is not None or agent.chat is not False:
        return False
    prompt = re.fullmatch(r"\{\{\s*(\w+)\s*\}\}", agent.prompt)
    return prompt is not None and prompt[1] == name and not isinstance(spec.models.get(agent.model), EndpointSpec)


def _channel(given: Any, spec: GraphSpec) -> Channel | None:
    if given is None:
        return None
    for channel in get_args(Channel):
        if channel == given:
            if not spec.edges:
                raise InputError(f"recipe {spec.name!r} has no edges, so `channel={given}` means nothing; leave it out")
            known: Channel = channel
            return known
    raise InputError(f"there is no channel {given!r}{suggest(given, get_args(Channel))}")


def _input(given: Any, spec: GraphSpec) -> str:
    required = [name for name, entry in spec.inputs.items() if entry.default is None]
    name = _only(required, spec.inputs) if given is None else str(given)
    if name is None:
        raise InputError(f"recipe {spec.name!r} has more than one input; say which is the context: input=...")
    if name not in spec.inputs:
        raise InputError(f"recipe {spec.name!r} has no input {name!r}{suggest(name, spec.inputs)}")
    missing = [other for other in required if other != name]
    if missing:
        raise InputError(
            f"a request has one text, which is input {name!r}; "
            f"give input {missing[0]!r} of recipe {spec.name!r} a default"
        )
    return name


def _only(required: list[str], inputs: Mapping[str, InputSpec]) -> str | None:
    """Return the only required input, or the only input."""
    names = required or list(inputs)
    return names[0] if len(names) == 1 else None


def _names(given: Any) -> list[str]:
    return [str(name) for name in given] if isinstance(given, list | tuple) else [str(given)] if given else []


def _batch_size(given: Any) -> int:
    return 8 if str(given).startswith("auto") else _whole("batch_size", given, 1)


def _whole(name: str, given: Any, least: int | None = None) -> int:
    try:
        value = int(str(given))
    except ValueError:
        value = None
    if value is None or (least is not None and value < least):
        raise InputError(f"{name} must be a whole number{f' of {least} or more' if least else ''}, not {given!r}")
    return value
