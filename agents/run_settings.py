"""How an agent decodes where the caller of a run has changed the recipe's settings."""

from .base import Turn
from .spec import AgentSpec

__all__ = ["with_settings"]


def with_settings(spec: AgentSpec, turn: Turn) -> AgentSpec:
    """The agent's spec as it is for this turn."""
    if not turn.generate:
        return spec
    return spec.model_copy(update={"generate": spec.generate.model_copy(update=dict(turn.generate))})
