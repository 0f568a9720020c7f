"""The agent kind `model`: agents that have a model, on this machine or behind an endpoint."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, PositiveFloat

from cachegraph.engine.spec import GenerateSpec, ModelSpec, Strict

from .endpoint_presets import PRESETS
from .entry import AgentContext, AgentEntry, Models, Reads
from .sessions.spec import Memory
from .tools.spec import ToolLimits, ToolName

if TYPE_CHECKING:
    from .base import Agent

__all__ = ["AgentSpec", "EndpointSpec", "FromEnv", "RetrySpec", "Trouble"]


class FromEnv(Strict):
    """A value read from an environment variable, as every secret is."""

    env: Annotated[
        str,
        Field(
            pattern=r"^[A-Z][A-Z0-9_]*$",
            description="The environment variable that holds it; the rules of api_key_env apply.",
            json_schema_extra={"patternErrorMessage": "the name of an environment variable in capitals"},
        ),
    ]


def _or_preset(schema: dict[str, Any]) -> None:
    """A preset gives what is otherwise required."""
    schema["anyOf"] = [{"required": schema.pop("required")}, {"required": ["source"]}]


class EndpointSpec(Strict):
    """A model behind an OpenAI-compatible chat endpoint. It has no cache to send, so its edges carry text."""

    model_config = ConfigDict(json_schema_extra=_or_preset)

    source: Annotated[
        str | None,
        Field(
            pattern=rf"^({'|'.join(PRESETS)})/.+",
            description="PRESET/MODEL, which fills in base_url, model and api_key_env.",
            json_schema_extra={"patternErrorMessage": "a preset and a model, such as 'ollama/llama3.2'"},
        ),
    ] = None
    base_url: Annotated[
        str,
        Field(
            pattern=r"^https?://[^\s/]+",
            description="Base URL, including /v1.",
            json_schema_extra={"patternErrorMessage": "a web address such as 'https://host/v1'"},
        ),
    ]
    model: Annotated[str, Field(min_length=1, description="Name of the model at the endpoint.")]
    api_key_env: Annotated[
        str | None,
        Field(
            pattern=r"^[A-Z][A-Z0-9_]*$",
            description="Environment variable of the key: CACHEGRAPH_..., or a preset's, for its host only.",
            json_schema_extra={"patternErrorMessage": "the name of an environment variable in capitals"},
        ),
    ] = None
    max_retries: Annotated[
        int, Field(ge=0, le=10, description="Retries per turn, for agents without a `retry` of their own.")
    ] = 2
    headers: Annotated[
        dict[str, str | FromEnv],
        Field(description="Headers of every request: text, or `{env: VARIABLE}` for a secret."),
    ] = {}  # noqa: RUF012 (pydantic copies it)
    extra_body: Annotated[
        dict[str, Any],
        Field(
            description="Fields added to the body of every request, such as `reasoning_effort`; null is sent as null."
        ),
    ] = {}  # noqa: RUF012 (pydantic copies it)

    def __hash__(self) -> int:  # headers and bodies are not hashable
        return hash(self.model_dump_json())


Trouble = Literal["connection", "rate_limit", "server"]


class RetrySpec(Strict):
    """When an agent behind an endpoint retries, as long as no part of the reply has arrived."""

    max_attempts: Annotated[int, Field(ge=1, le=20, description="Maximum number of attempts, including the first.")] = 3
    backoff: Annotated[
        PositiveFloat,
        Field(description="Approximate seconds before the second attempt; doubles with each further attempt."),
    ] = 0.5
    retry_on: Annotated[
        tuple[Trouble, ...],
        Field(description="rate_limit: 429; server: 408, 425 and temporary 5xx. Retry-After is honoured."),
    ] = ("connection", "rate_limit", "server")


class AgentSpec(AgentEntry):
    """One agent: a model and the prompt it answers."""

    model: Annotated[str, Field(min_length=1, description="A key of `models`, or the name of a model.")]
    prompt: Annotated[str, Field(description="A Jinja template; its variables are the inputs and the upstream agents.")]
    system: Annotated[str | None, Field(description="The system message, a Jinja template.")] = None
    generate: GenerateSpec = GenerateSpec()
    chat: Annotated[
        Literal["auto"] | bool,
        Field(description="Render the prompt with the model's chat template; auto: if it has one."),
    ] = "auto"
    fusion: Annotated[
        Literal["parallel", "sequential"],
        Field(description="Several sharers: add all residuals to the clean cache, or fuse one after the other."),
    ] = "parallel"
    retry: Annotated[
        RetrySpec | None, Field(description="For a model behind an endpoint: replaces its max_retries.")
    ] = None
    tools: Annotated[
        tuple[ToolName, ...], Field(description="Keys of the recipe's `tools`, or single tools as `server.tool`.")
    ] = ()
    tool_limits: ToolLimits = ToolLimits()
    memory: Annotated[
        Memory, Field(description="Include earlier turns of the run's session in the prompt: true, or their limits.")
    ] = False

    template_keys: ClassVar[tuple[str, ...]] = ("prompt", "system")
    acts: ClassVar[bool] = False
    no_cache: ClassVar[str | None] = None

    def create(self, context: AgentContext) -> "Agent":
        return context.create(self, context)

    def label(self, models: Models) -> str:
        match models.get(self.model, self.model):
            case ModelSpec(source=source):
                return source
            case EndpointSpec(model=name, base_url=url):
                return f"{name} at {urlsplit(url).hostname}"
            case name:
                return name

    @property
    def session_memory(self) -> Memory:
        return self.memory

    @property
    def uses_tools(self) -> bool:
        return bool(self.tools)

    @property
    def reads_only(self) -> bool:
        return self.generate.max_new_tokens == 0

    def reads(self, name: str, senders: Collection[str], inputs: Collection[str]) -> Reads:
        from .prompt.prompt_reads import prompt_reads

        reads = prompt_reads(name, self, tuple(senders))
        return Reads(reads.names | reads.withheld, reads.heard, reads.withheld)

    @classmethod
    def paths_in(cls, body: Mapping[str, Any], models: Collection[str]) -> list[tuple[str, str]]:
        model = body.get("model")
        return [("model", model)] if isinstance(model, str) and model not in models else []
