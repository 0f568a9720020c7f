"""Limit a turn to the rest of the run's token budget."""

from cachegraph.engine.spec import GenerateSpec
from cachegraph.errors import RunError

from .base import Turn

__all__ = ["within_budget"]


def within_budget(spec: GenerateSpec, turn: Turn) -> GenerateSpec:
    """Limit decoding to the remaining tokens. Raises RunError if none remain."""
    left = turn.most_tokens
    if left is None or left >= spec.max_new_tokens:
        return spec
    if left <= 0:
        raise RunError("the tokens that all agents of the run may write are used up (limits.max_tokens)")
    return spec.model_copy(update={"max_new_tokens": left})
