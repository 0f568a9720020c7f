"""What one rendering of a stranger's template may spend: steps, seconds of this thread, characters made.

Prompts, conditions and chat templates draw from one kind of budget. Every operator, filter, test, method and loop step
pays before it works, so that nothing can grow faster than what was paid for.
"""

import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from jinja2.exceptions import TemplateRuntimeError

__all__ = ["BUDGET", "MAX_ITEMS", "Budget", "Weight", "spend", "weigh"]

MAX_STEPS = 100_000
MAX_SECONDS = 1.0  # of the rendering thread, so that a busy machine refuses nothing
MAX_WORK = 128_000_000  # characters made by filters, methods and operators in one render
MAX_ITEMS = 100_000  # of one list or range


class Budget:
    """What one render may still spend."""

    def __init__(self, steps: int = MAX_STEPS) -> None:
        self.most = self.steps = steps
        self.work = MAX_WORK
        self.deadline = time.thread_time() + MAX_SECONDS

    def spend(self, work: int = 0) -> None:
        self.steps -= 1
        self.work -= work
        if self.steps < 0:
            raise TemplateRuntimeError(f"the template takes more than {self.most:,} steps; loop over less")
        if self.work < 0:
            raise TemplateRuntimeError(f"the template makes more than {MAX_WORK:,} characters; repeat less")
        if time.thread_time() > self.deadline:
            raise TemplateRuntimeError(f"the template runs for more than {MAX_SECONDS:g} s; loop over less")


BUDGET: ContextVar[Budget] = ContextVar("BUDGET")


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
