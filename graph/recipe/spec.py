"""A recipe as typed values. Independent of YAML and torch."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from cachegraph.agents.kinds import entry_type
from cachegraph.agents.spec import AgentSpec, EndpointSpec
from cachegraph.agents.subgraph import SubgraphSpec
from cachegraph.agents.tools.spec import ToolServerSpec
from cachegraph.channels.spec import EdgeSpec
from cachegraph.engine.spec import Limits, ModelSpec, Strict
from cachegraph.errors import InputError

from .evaluate_spec import EvaluateSpec
from .presets import with_presets

if TYPE_CHECKING:
    from cachegraph.agents.entry import AgentEntry
else:
    AgentEntry = entry_type()

__all__ = ["GraphSpec", "InputSpec", "ModelEntry"]

# Names must be valid in templates: {{ name }}.
Identifier = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        max_length=100,
        json_schema_extra={
            "patternErrorMessage": "letters, digits and '_', starting with a letter, as templates use it"
        },
    ),
]


InputType = Literal["string", "number", "boolean", "list", "object"]


class InputSpec(Strict):
    """A value that the caller provides; required if it has no default."""

    description: str = ""
    type: InputType | None = None
    json_schema: Annotated[
        dict[str, Any] | None, Field(alias="schema", description="A JSON Schema that the value must satisfy.")
    ] = None
    default: Any = None

    @property
    def kind(self) -> str:
        """The type; `any` if only a schema restricts it."""
        return self.type or ("string" if self.json_schema is None else "any")

    @property
    def is_required(self) -> bool:
        """Whether the caller must provide it."""
        return self.default is None


def _model_kind(value: Any) -> str:
    if isinstance(value, str):
        return "name"
    has_url = "base_url" in value if isinstance(value, dict) else hasattr(value, "base_url")
    return "endpoint" if has_url else "local"


ModelEntry = Annotated[
    Annotated[Annotated[str, Field(min_length=1)], Tag("name")]
    | Annotated[ModelSpec, Tag("local")]
    | Annotated[EndpointSpec, Tag("endpoint")],
    Discriminator(_model_kind),
]


def _output_kind(value: Any) -> str:
    return "list" if isinstance(value, tuple | list) else "named" if isinstance(value, dict) else "one"


def _whole(value: Any) -> Any:
    # True and 1.0 equal 1 but are invalid versions.
    return value if type(value) is int else repr(value)


class GraphSpec(Strict):
    """A whole recipe, version 1."""

    version: Annotated[Literal[1], BeforeValidator(_whole)]
    name: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
            max_length=100,
            json_schema_extra={"patternErrorMessage": "letters, digits, '.', '_' and '-'"},
        ),
    ]
    description: str = ""
    models: dict[Identifier, ModelEntry] = {}  # noqa: RUF012 (pydantic copies it)
    tools: Annotated[
        dict[Identifier, ToolServerSpec],
        Field(description="Servers of the Model Context Protocol, whose tools agents call."),
    ] = {}  # noqa: RUF012 (pydantic copies it)
    fusers: Annotated[
        tuple[Annotated[str, Field(min_length=1)], ...],
        Field(description="Fusers for cache edges that name none; each edge takes the first that fits its two models."),
    ] = ()
    inputs: dict[Identifier, InputSpec] = {}  # noqa: RUF012 (pydantic copies it)
    agents: Annotated[dict[Identifier, AgentEntry], Field(min_length=1)]
    edges: tuple[EdgeSpec, ...] = ()
    answers: Annotated[
        Annotated[str, Tag("one")]
        | Annotated[tuple[str, ...], Field(min_length=1), Tag("list")]
        | Annotated[dict[Identifier, str], Field(min_length=1), Tag("named")],
        Discriminator(_output_kind),
        Field(
            alias="output",
            description="The agent whose reply is the graph's result; or several agents, by name or as a list.",
        ),
    ]
    on_error: Annotated[
        Literal["stop", "continue"],
        Field(description="stop: a failed agent ends the run; continue: only agents that depend on it are cancelled."),
    ] = "stop"
    limits: Limits = Limits()
    evaluate: Annotated[EvaluateSpec | None, Field(description="The columns that `cachegraph compare` reads.")] = None

    @model_validator(mode="before")
    @classmethod
    def _fill_in_presets(cls, data: Any) -> Any:
        return with_presets(data) if isinstance(data, Mapping) else data

    @property
    def outputs(self) -> dict[str, str]:
        """Map output names to the agents that write them."""
        if isinstance(self.answers, str):
            return {self.answers: self.answers}
        return dict(self.answers) if isinstance(self.answers, dict) else {name: name for name in self.answers}

    @property
    def output(self) -> str:
        """The agent that writes the graph's reply, or the first of several."""
        return next(iter(self.outputs.values()))

    def speaker(self, name: str) -> AgentSpec:
        """Return the agent of this name. Raises InputError if it has no model."""
        agent = self.agents[name]
        if not isinstance(agent, AgentSpec):
            raise InputError(f"agent {name!r} has no `model`; choose an agent that has one")
        return agent

    @property
    def speakers(self) -> dict[str, AgentSpec]:
        """Agents that have a model."""
        return {name: agent for name, agent in self.agents.items() if isinstance(agent, AgentSpec)}

    @property
    def graphs(self) -> dict[str, SubgraphSpec]:
        """Included recipes, by agent name."""
        return {name: agent for name, agent in self.agents.items() if isinstance(agent, SubgraphSpec)}
