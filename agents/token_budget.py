"""What a run's budget of tokens leaves to one turn."""

from cachegraph.engine.spec import GenerateSpec
from cachegraph.errors import RunError

from .base import Turn

__all__ = ["within_budget"]


def within_budget(spec: GenerateSpec, turn: Turn) -> GenerateSpec:
    """How to decode without writing more than is left. Raises RunError where nothing is."""
    left = turn.most_tokens
    if left is None or left >= spec.max_new_tokens:
        return spec
    if left <= 0:
        raise RunError("the tokens that all agents of the run may write are used up (limits.max_tokens)")
    return spec.model_copy(update={"max_new_tokens": left})
