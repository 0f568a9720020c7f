"""The agents' slice of a recipe: who speaks, with which model, from which prompt.

An entry of `agents` is told by the key that only its kind has: `model`, `graph`, ... A further kind is a class here, a
member of `AgentEntry`, a line in `KINDS`, and whatever `create_agents` of the graph makes of it.
"""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, PositiveFloat, PositiveInt, Tag

from cachegraph.channels.spec import Channel
from cachegraph.engine.spec import GenerateSpec, Strict

from .sessions.spec import Memory
from .tools.spec import ToolLimits, ToolName

__all__ = [
    "KINDS",
    "AgentEntry",
    "AgentSpec",
    "EndpointSpec",
    "Entry",
    "FromEnv",
    "FunctionSpec",
    "PauseSpec",
    "RetrySpec",
    "RouteCase",
    "SubgraphSpec",
    "Trouble",
]


class FromEnv(Strict):
    """A value that stands in an environment variable, as every secret does."""

    env: Annotated[
        str,
        Field(
            pattern=r"^[A-Z][A-Z0-9_]*$",
            description="The variable that holds it, under the rules of api_key_env.",
            json_schema_extra={"patternErrorMessage": "the name of an environment variable in capitals"},
        ),
    ]


class EndpointSpec(Strict):
    """A model behind an OpenAI-compatible chat endpoint. It has no cache to send, so it speaks over text edges."""

    base_url: Annotated[
        str,
        Field(
            pattern=r"^https?://[^\s/]+",
            description="Up to and with /v1.",
            json_schema_extra={"patternErrorMessage": "a web address such as 'https://host/v1'"},
        ),
    ]
    model: Annotated[str, Field(min_length=1, description="The model's name at that endpoint.")]
    api_key_env: Annotated[
        str | None,
        Field(
            pattern=r"^[A-Z][A-Z0-9_]*$",
            description="The variable that holds the key: CACHEGRAPH_..., or OPENAI_API_KEY at api.openai.com.",
            json_schema_extra={"patternErrorMessage": "the name of an environment variable in capitals"},
        ),
    ] = None
    max_retries: Annotated[
        int, Field(ge=0, le=10, description="How often its agents try again, unless they have a `retry` of their own.")
    ] = 2
    headers: Annotated[
        dict[str, str | FromEnv],
        Field(description="Sent with every request: text, or `{env: VARIABLE}` for what is secret."),
    ] = {}  # noqa: RUF012 (pydantic copies it)
    extra_body: Annotated[
        dict[str, Any],
        Field(description="Added to the body of every request, such as `reasoning_effort`; null is sent as null."),
    ] = {}  # noqa: RUF012 (pydantic copies it)

    def __hash__(self) -> int:  # headers and bodies have no hash of their own
        return hash(self.model_dump_json())


Trouble = Literal["connection", "rate_limit", "server"]


class RetrySpec(Strict):
    """When an agent behind an endpoint tries again, as long as nothing of the reply has been heard."""

    max_attempts: Annotated[int, Field(ge=1, le=20, description="The first one included.")] = 3
    backoff: Annotated[
        PositiveFloat, Field(description="Seconds before the second attempt, about; doubles with each.")
    ] = 0.5
    retry_on: Annotated[
        tuple[Trouble, ...],
        Field(description="No connection; 429; 408, 425 and the 5xx that pass. Retry-After is kept to."),
    ] = ("connection", "rate_limit", "server")


class RouteCase(Strict):
    """One way on from an agent, and its condition."""

    when: Annotated[str | None, Field(description="An expression; the case without one is the last.")] = None
    to: Annotated[str, Field(min_length=1, description="The agent that then receives.")]


class Entry(Strict):
    """What every entry of `agents` may say, whatever stands behind it."""

    timeout: Annotated[PositiveFloat | None, Field(description="Seconds, of one turn.")] = None
    join: Annotated[
        Literal["all", "any"] | PositiveInt,
        Field(description="Start when all messages are there, at the first, or at so many."),
    ] = "all"
    route: Annotated[
        tuple[RouteCase, ...], Field(description="Exactly one of these receives: the first whose condition is true.")
    ] = ()
    for_each: Annotated[
        str | None, Field(description="An expression that gives a list: the agent takes a turn for every item.")
    ] = None
    item: Annotated[
        str,
        Field(
            alias="as",
            pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
            max_length=100,
            description="What the item is called in templates.",
            json_schema_extra={"patternErrorMessage": "letters, digits and '_', as templates use it"},
        ),
    ] = "item"
    max_concurrent: Annotated[PositiveInt | None, Field(description="Items at work at the same time.")] = None


class AgentSpec(Entry):
    """One agent: a model and the prompt it answers."""

    model: Annotated[str, Field(min_length=1, description="A key of `models`, or a model's name.")]
    prompt: Annotated[str, Field(description="A Jinja template; its names are the inputs and the agents upstream.")]
    system: Annotated[str | None, Field(description="The system message, a template too.")] = None
    generate: GenerateSpec = GenerateSpec()
    chat: Annotated[
        Literal["auto"] | bool, Field(description="Wrap the prompt in the model's chat template; auto: if it has one.")
    ] = "auto"
    fusion: Annotated[
        Literal["parallel", "sequential"],
        Field(description="Several sharers: sum of residuals from the clean cache, or one after the other."),
    ] = "parallel"
    retry: Annotated[
        RetrySpec | None, Field(description="For a model behind an endpoint; instead of its max_retries.")
    ] = None
    tools: Annotated[
        tuple[ToolName, ...], Field(description="Keys of the recipe's `tools`, or single tools as `server.tool`.")
    ] = ()
    tool_limits: ToolLimits = ToolLimits()
    memory: Annotated[
        Memory, Field(description="Remember earlier turns of the run's session; true, or how much of them.")
    ] = False


class SubgraphSpec(Entry):
    """Another recipe in an agent's place: what it is given are its inputs, what it replies is its output."""

    graph: Annotated[str, Field(min_length=1, description="A recipe's file, seen from this one.")]
    inputs: Annotated[dict[str, str], Field(description="By its inputs, what they get: templates as prompts are.")] = {}  # noqa: RUF012 (pydantic copies it)
    channels: Annotated[
        Channel | dict[str, Channel] | None,
        Field(description="Other channels than its edges have: one for all, or by `sender:receiver`; `*`: the rest."),
    ] = None


class FunctionSpec(Entry):
    """A Python function in an agent's place. A recipe may name one only where its caller allows code (--allow-code)."""

    function: Annotated[
        str,
        Field(
            pattern=r"^[^:\s]+:[^:\s]+$",
            description="`package.module:name`, or `file.py:name` of the recipe's folder.",
            json_schema_extra={"patternErrorMessage": "a function such as 'package.module:name' or 'file.py:name'"},
        ),
    ]


class PauseSpec(Entry):
    """A question to a person: the run pauses there, and goes on when it is resumed with the answer."""

    pause: Annotated[str, Field(description="The question, a template as prompts are.")]


# By the key that tells them apart; an entry with none of them is meant to have a model.
KINDS: dict[str, type[Entry]] = {
    "graph": SubgraphSpec,
    "function": FunctionSpec,
    "pause": PauseSpec,
    "model": AgentSpec,
}


def _kind(value: Any) -> str:
    has = value.__contains__ if isinstance(value, dict) else lambda key: hasattr(value, key)
    return next((key for key in KINDS if has(key)), "model")


AgentEntry = Annotated[
    Annotated[AgentSpec, Tag("model")]
    | Annotated[SubgraphSpec, Tag("graph")]
    | Annotated[FunctionSpec, Tag("function")]
    | Annotated[PauseSpec, Tag("pause")],
    Discriminator(_kind),
]
