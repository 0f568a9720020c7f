"""Limits on the work of one template rendering.

Prompts, conditions and chat templates use the same kind of budget. Every operator, filter, test, method and loop step
spends before it works, so that no result exceeds the budget. All renders of one agent's turn also share an allowance
of seconds.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from jinja2.exceptions import TemplateRuntimeError

__all__ = ["ALLOWANCE", "BUDGET", "MAX_ITEMS", "Allowance", "Budget", "Weight", "render_budget", "spend", "weigh"]

MAX_STEPS = 100_000
MAX_SECONDS = 1.0  # CPU time of the rendering thread, so that a busy machine refuses nothing
MAX_TURN_SECONDS = 2.0  # sum over all renders of one turn
MAX_WORK = 128_000_000  # characters produced by filters, methods and operators in one render
MAX_ITEMS = 100_000  # per list or range


class Budget:
    """Remaining budget of one render."""

    def __init__(self, steps: int = MAX_STEPS, seconds: float = MAX_SECONDS) -> None:
        self.most = self.steps = steps
        self.work = MAX_WORK
        self.seconds = min(seconds, MAX_SECONDS)
        self.deadline = time.thread_time() + self.seconds

    def spend(self, work: int = 0) -> None:
        self.steps -= 1
        self.work -= work
        if self.steps < 0:
            raise TemplateRuntimeError(f"the template takes more than {self.most:,} steps; loop over less")
        if self.work < 0:
            raise TemplateRuntimeError(f"the template makes more than {MAX_WORK:,} characters; repeat less")
        if time.thread_time() > self.deadline:
            if self.seconds < MAX_SECONDS:
                raise TemplateRuntimeError(
                    f"the templates of one turn run for more than {MAX_TURN_SECONDS:g} s together; loop over less"
                )
            raise TemplateRuntimeError(f"the template runs for more than {MAX_SECONDS:g} s; loop over less")


class Allowance:
    """Remaining seconds for all renders of one turn, which run one after the other in any threads."""

    def __init__(self, seconds: float = MAX_TURN_SECONDS) -> None:
        self.seconds = seconds
        self._budget: Budget | None = None  # of the current render

    @contextmanager
    def granting(self, budget: Budget) -> Iterator[None]:
        """Charge the render's seconds to this allowance."""
        began = time.thread_time()
        self._budget = budget
        try:
            yield
        finally:
            self._budget = None
            self.seconds -= time.thread_time() - began

    def stop(self) -> None:
        """Cancel the current render at its next step, and all later ones. Called from another thread."""
        self.seconds = 0.0
        if (budget := self._budget) is not None:
            budget.deadline = 0.0


BUDGET: ContextVar[Budget] = ContextVar("BUDGET")
ALLOWANCE: ContextVar[Allowance | None] = ContextVar("ALLOWANCE", default=None)


@contextmanager
def render_budget(steps: int = MAX_STEPS) -> Iterator[Budget]:
    """Open the budget of one render, within its turn's allowance, if any."""
    allowance = ALLOWANCE.get()
    budget = Budget(steps) if allowance is None else Budget(steps, allowance.seconds)
    token = BUDGET.set(budget)
    try:
        if allowance is None:
            yield budget
        else:
            with allowance.granting(budget):
                yield budget
    finally:
        BUDGET.reset(token)


def spend(work: int = 0) -> None:
    BUDGET.get().spend(work)


class Weight:
    """Size of a value when written out: items, characters, depth."""

    def __init__(self) -> None:
        self.items = 0
        self.characters = 0
        self.depth = 0


def weigh(value: Any) -> Weight:
    """Measure a value, one step per item. Shared lists count at every occurrence."""
    weight = Weight()
    if isinstance(value, str):
        weight.items, weight.characters = 1, len(value)
        spend(len(value) // 16)
        return weight
    todo: list[tuple[Any, int]] = [(value, 0)]
    while todo:
        item, depth = todo.pop()
        weight.items += 1
        weight.depth = max(weight.depth, depth)
        if isinstance(item, str):
            weight.characters += len(item)
            spend(len(item) // 16)
            continue
        spend()
        if isinstance(item, Mapping):
            todo += [(inner, depth + 1) for pair in item.items() for inner in pair]
        elif isinstance(item, list | tuple):
            todo += [(inner, depth + 1) for inner in item]
        else:
            weight.characters += 25  # a number or bool
    return weight
