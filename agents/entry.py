"""AgentEntry, the base of all agent kinds: the common keys of an entry, and what the graph asks of a kind."""

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field, PositiveFloat, PositiveInt

from cachegraph.engine.spec import ModelSpec, Strict

from .sessions.spec import Memory

if TYPE_CHECKING:
    from .base import Agent
    from .functions.import_function import Function
    from .spec import AgentSpec, EndpointSpec
    from .subgraph import SubgraphSpec
    from .tools.servers import Toolbox

__all__ = ["AgentContext", "AgentEntry", "Models", "Reads", "RouteCase"]

Models = Mapping[str, "str | ModelSpec | EndpointSpec"]  # the recipe's `models`


class Reads(NamedTuple):
    """The inputs and replies that an agent reads. A condition that only tests a text names it without hearing it."""

    named: frozenset[str]
    heard: frozenset[str]
    withheld: frozenset[str] = frozenset()  # heard, but not passed on: named only in the system message of a reader


@dataclass(frozen=True, eq=False)
class AgentContext:
    """What a kind may use to create an agent."""

    name: str
    folder: Path  # of the recipe
    inputs: tuple[str, ...]  # the names of the recipe's inputs, and of the item of `for_each`
    upstream: tuple[str, ...]  # the agents with an edge to this one
    models: Models
    toolbox: "Toolbox"
    create: "Callable[[AgentSpec, AgentContext], Agent]"  # creates an agent that has a model
    include: "Callable[[str, SubgraphSpec], Agent]"  # creates the agent of an included recipe
    function: "Function | None" = None  # the function that the caller's code registered under this name


class RouteCase(Strict):
    """A route out of an agent, and its condition."""

    when: Annotated[str | None, Field(description="Condition expression; only the last case may leave it out.")] = None
    to: Annotated[str, Field(min_length=1, description="The agent that receives if the condition is true.")]


class AgentEntry(Strict):
    """The keys that every entry of `agents` may have, whatever its kind."""

    timeout: Annotated[PositiveFloat | None, Field(description="Maximum seconds of one turn.")] = None
    join: Annotated[
        Literal["all", "any"] | PositiveInt,
        Field(description="Start when all upstream replies have arrived, at the first, or at this number."),
    ] = "all"
    route: Annotated[
        tuple[RouteCase, ...],
        Field(description="Exactly one of these agents receives the reply: the first whose condition is true."),
    ] = ()
    for_each: Annotated[
        str | None, Field(description="Expression that gives a list; the agent takes one turn per item.")
    ] = None
    item: Annotated[
        str,
        Field(
            alias="as",
            pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
            max_length=100,
            description="Name of the item in templates.",
            json_schema_extra={"patternErrorMessage": "letters, digits and '_', as templates use it"},
        ),
    ] = "item"
    max_concurrent: Annotated[
        PositiveInt | None, Field(description="Maximum number of items processed at the same time.")
    ] = None

    # The graph's interface to a kind. A kind defines `create` and `label`, and overrides defaults that do not fit.

    template_keys: ClassVar[tuple[str, ...]] = ()  # keys that hold a template
    template_maps: ClassVar[tuple[str, ...]] = ()  # keys that hold a mapping of templates
    takes_all_inputs: ClassVar[bool] = False  # it may read every input, whether or not its templates name it
    acts: ClassVar[bool] = True  # it has effects beside its reply, so it takes its turn even if nobody reads the reply
    pauses: ClassVar[bool] = False  # it waits for a person, so its run must be stored
    no_cache: ClassVar[str | None] = "has no KV cache"  # follows "agent 'x'" in a message; None: the model decides
    mermaid_brackets: ClassVar[tuple[str, str] | None] = None  # None: by its route

    @abstractmethod
    def create(self, context: AgentContext) -> "Agent":
        """Create the agent, unopened."""

    @abstractmethod
    def label(self, models: Models) -> str:
        """The agent's model or code, for drawings."""

    @property
    def session_memory(self) -> Memory:
        """What the agent remembers of a session; False: nothing."""
        return False

    @property
    def uses_tools(self) -> bool:
        """Whether a turn may call tools."""
        return False

    @property
    def reads_only(self) -> bool:
        """Whether the agent only reads its prompt and decodes nothing."""
        return False

    def templates(self) -> list[tuple[str, str]]:
        """Every template and the key that holds it, such as `prompt` or `inputs.topic`."""
        values = {key: getattr(self, key) for key in (*self.template_keys, *self.template_maps)}
        return [(".".join(path), source) for path, source in self.templates_in(values)]

    def reads(self, name: str, senders: Collection[str], inputs: Collection[str]) -> Reads:
        """The names that this agent reads. By default, a reply without a slot is read in front of the prompt."""
        from .prompt.template import compile_template

        templates = [compile_template(source, None) for _, source in self.templates()]
        named = frozenset(inputs if self.takes_all_inputs else ()).union(*(template.names for template in templates))
        heard = frozenset(inputs if self.takes_all_inputs else ()).union(*(template.heard for template in templates))
        return Reads(named, heard | (frozenset(senders) - named))

    def why_unread(self, name: str, sender: str) -> str:
        """Why this agent receives no text of this sender's reply."""
        return f"the prompt of {name!r} only asks whether {sender!r} has replied"

    # These take an entry's raw data, which may be invalid in other respects.

    @classmethod
    def templates_in(cls, body: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
        """Yield every template and the keys that lead to it."""
        for key in cls.template_keys:
            if isinstance(source := body.get(key), str):
                yield (key,), source
        for key in cls.template_maps:
            sources = body.get(key)
            for name, source in sources.items() if isinstance(sources, Mapping) else ():
                if isinstance(source, str):
                    yield (key, name), source

    @classmethod
    def paths_in(cls, body: Mapping[str, Any], models: Collection[str]) -> Collection[tuple[str, str]]:
        """Keys whose values may be paths, with the paths. `models` are the keys of the recipe's `models`."""
        return ()

    @classmethod
    def code_in(cls, body: Mapping[str, Any]) -> tuple[str, str] | None:
        """The key that makes the entry run code on this machine, and the code it names; None if it runs none."""
        return None
