"""The agent kind `graph`: an included recipe as an agent. Its agent is graph.run.subgraph.SubgraphAgent."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from cachegraph.channels.spec import Channel

from .entry import AgentContext, AgentEntry, Models, Reads

if TYPE_CHECKING:
    from .base import Agent

__all__ = ["SubgraphSpec"]


class SubgraphSpec(AgentEntry):
    """An included recipe as an agent: the agent's inputs become the recipe's inputs, and its output the reply."""

    graph: Annotated[str, Field(min_length=1, description="Path of a recipe, relative to this one.")]
    inputs: Annotated[dict[str, str], Field(description="Jinja templates for the subgraph's inputs, by input.")] = {}  # noqa: RUF012 (pydantic copies it)
    channels: Annotated[
        Channel | dict[str, Channel] | None,
        Field(description="Channels that replace its edges' own: one for all, or by `sender:receiver`; `*`: the rest."),
    ] = None

    template_maps: ClassVar[tuple[str, ...]] = ("inputs",)
    no_cache: ClassVar[str | None] = None  # decided by its output agent
    mermaid_brackets: ClassVar[tuple[str, str] | None] = ('[["', '"]]')

    def create(self, context: AgentContext) -> "Agent":
        return context.include(context.name, self)

    def label(self, models: Models) -> str:
        return self.graph

    def reads(self, name: str, senders: Collection[str], inputs: Collection[str]) -> Reads:
        named = frozenset(value_name for source in self.inputs.values() for value_name in _value_names(source))
        return Reads(named, named)

    def why_unread(self, name: str, sender: str) -> str:
        return f"the `inputs` of {name!r} don't name {sender!r}"

    @classmethod
    def paths_in(cls, body: Mapping[str, Any], models: Collection[str]) -> list[tuple[str, str]]:
        return [("graph", graph)] if isinstance(graph := body.get("graph"), str) else []


def _value_names(source: str) -> frozenset[str]:
    """The names in an input's value, which is one expression in braces or a template."""
    from .prompt.expression import compile_expression
    from .prompt.template import TemplateProblem, compile_template

    try:
        if source.strip().startswith("{{"):
            return compile_expression(source, None).names
    except TemplateProblem:
        pass
    return compile_template(source, None).names
