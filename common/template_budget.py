"""Limits on the work of one template rendering.

Prompts, conditions and chat templates draw from one kind of budget. Every operator, filter, test, method and loop step
pays before it works, so that nothing can grow faster than what was paid for. All renders of one agent's turn share an
allowance of seconds besides.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from jinja2.exceptions import TemplateRuntimeError

__all__ = ["ALLOWANCE", "BUDGET", "MAX_ITEMS", "Allowance", "Budget", "Weight", "render_budget", "spend", "weigh"]

MAX_STEPS = 100_000
MAX_SECONDS = 1.0  # of the rendering thread, so that a busy machine refuses nothing
MAX_TURN_SECONDS = 2.0  # of all renders of one turn together
MAX_WORK = 128_000_000  # characters made by filters, methods and operators in one render
MAX_ITEMS = 100_000  # of one list or range


class Budget:
    """What one render may still spend."""

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
    """The seconds that the renders of one turn may still take together, one after the other, in whatever threads."""

    def __init__(self, seconds: float = MAX_TURN_SECONDS) -> None:
        self.seconds = seconds
        self._budget: Budget | None = None  # of the render at work

    @contextmanager
    def granting(self, budget: Budget) -> Iterator[None]:
        """What the render takes is taken from this allowance."""
        began = time.thread_time()
        self._budget = budget
        try:
            yield
        finally:
            self._budget = None
            self.seconds -= time.thread_time() - began

    def stop(self) -> None:
        """Nobody waits for the renders any more: end the one at work at its next step. Called from another thread."""
        self.seconds = 0.0
        if (budget := self._budget) is not None:
            budget.deadline = 0.0


BUDGET: ContextVar[Budget] = ContextVar("BUDGET")
ALLOWANCE: ContextVar[Allowance | None] = ContextVar("ALLOWANCE", default=None)


@contextmanager
def render_budget(steps: int = MAX_STEPS) -> Iterator[Budget]:
    """The budget of one render, within the allowance of its turn if it has one."""
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
    """How large a value is when it is written out: its items, its characters, its depth."""

    def __init__(self) -> None:
        self.items = 0
        self.characters = 0
        self.depth = 0


def weigh(value: Any) -> Weight:
    """Walk a value, a step an item. A list that holds another twice, and that another twice, is as large as it says."""
    weight = Weight()
    if isinstance(value, str):
        weight.items, weight.characters = 1, len(value)
        spend(len(value) // 16)
        return weight
    todo: list[tuple[Any, int]] = [(value, 0)]
    while todo:
        each, depth = todo.pop()
        weight.items += 1
        weight.depth = max(weight.depth, depth)
        if isinstance(each, str):
            weight.characters += len(each)
            spend(len(each) // 16)
            continue
        spend()
        if isinstance(each, Mapping):
            todo += [(inner, depth + 1) for pair in each.items() for inner in pair]
        elif isinstance(each, list | tuple):
            todo += [(inner, depth + 1) for inner in each]
        else:
            weight.characters += 25  # a number, a truth value
    return weight
