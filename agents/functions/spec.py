"""The agent kind `function`."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from ..entry import AgentContext, AgentEntry, Models

if TYPE_CHECKING:
    from ..base import Agent

__all__ = ["FunctionSpec"]


class FunctionSpec(AgentEntry):
    """A Python function as an agent. A recipe may name one only if its caller allows code (--allow-code)."""

    function: Annotated[
        str,
        Field(
            pattern=r"^[^:\s]+:[^:\s]+$",
            description="`package.module:name`, or `file.py:name` relative to the recipe's folder.",
            json_schema_extra={"patternErrorMessage": "a function such as 'package.module:name' or 'file.py:name'"},
        ),
    ]

    takes_all_inputs: ClassVar[bool] = True  # its parameters are known only after import
    no_cache: ClassVar[str | None] = "is a function, which has no KV cache"

    def create(self, context: AgentContext) -> "Agent":
        from .agent import FunctionAgent

        return FunctionAgent(
            context.name,
            self.function,
            context.function,
            context.folder,
            inputs=context.inputs,
            upstream=context.upstream,
        )

    def label(self, models: Models) -> str:
        return self.function

    @classmethod
    def code_in(cls, body: Mapping[str, Any]) -> tuple[str, str] | None:
        return ("function", f"the function {body['function']!r}") if "function" in body else None

    @classmethod
    def paths_in(cls, body: Mapping[str, Any], models: Collection[str]) -> list[tuple[str, str]]:
        function = body.get("function")
        file = function.rpartition(":")[0] if isinstance(function, str) else ""
        return [("function", file)] if file.endswith(".py") else []
