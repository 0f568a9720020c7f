"""Apply a run's decoding settings over the recipe's."""

from .base import Turn
from .spec import AgentSpec

__all__ = ["with_settings"]


def with_settings(spec: AgentSpec, turn: Turn) -> AgentSpec:
    """Return the agent's spec for this turn."""
    if not turn.generate:
        return spec
    return spec.model_copy(update={"generate": spec.generate.model_copy(update=dict(turn.generate))})
