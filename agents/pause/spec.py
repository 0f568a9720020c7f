"""The agent kind `pause`."""

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from ..entry import AgentContext, AgentEntry, Models

if TYPE_CHECKING:
    from ..base import Agent

__all__ = ["PauseSpec"]


class PauseSpec(AgentEntry):
    """A question to a person: the run pauses there, and continues when it is resumed with the answer."""

    pause: Annotated[str, Field(description="The question to a person, a Jinja template.")]

    template_keys: ClassVar[tuple[str, ...]] = ("pause",)
    pauses: ClassVar[bool] = True
    no_cache: ClassVar[str | None] = "is a person, who has no KV cache"

    def create(self, context: AgentContext) -> "Agent":
        from .agent import PauseAgent

        return PauseAgent(context.name, self, upstream=context.upstream)

    def label(self, models: Models) -> str:
        return "a person"
