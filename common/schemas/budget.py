"""Work limits of JSON Schema checks, in steps of a few microseconds."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["MAX_STEPS", "CheckBudget", "CheckGroup", "TooMuchWork", "check_budget", "spend"]

MAX_STEPS = 500_000  # per check


class TooMuchWork(Exception):
    """A check has used up its budget, or its group has ended."""


class CheckBudget:
    """Remaining budget of one check."""

    def __init__(self, steps: int = MAX_STEPS):
        self.steps = steps
        self.is_stopped = False  # by another thread

    def spend(self, steps: int) -> None:
        self.steps -= steps
        if self.steps < 0 or self.is_stopped:
            raise TooMuchWork


class CheckGroup:
    """Several consecutive checks. The checks of a group with `few` steps share them; it ends when they are spent."""

    def __init__(self, few: int | None = None):
        self._shared = None if few is None else CheckBudget(few)
        self._budget: CheckBudget | None = None  # of the current check
        self._is_stopped = False

    @property
    def is_over(self) -> bool:
        """Whether TooMuchWork concerns the whole group, not one value."""
        return self._is_stopped or self._shared is not None

    def begin(self) -> CheckBudget:
        """Return the budget of the next check."""
        budget = self._budget = self._shared or CheckBudget()
        if self._is_stopped:
            budget.is_stopped = True
        return budget

    def stop(self) -> None:
        """Cancel the current check at its next step, and all later ones. Called from another thread."""
        self._is_stopped = True
        if (budget := self._budget) is not None:
            budget.is_stopped = True

    @contextmanager
    def granting(self) -> Iterator[None]:
        """Run the block's checks in this group. They raise TooMuchWork when it is over."""
        token = _GROUP.set(self)
        try:
            yield
        finally:
            _GROUP.reset(token)


_BUDGET: ContextVar[CheckBudget] = ContextVar("BUDGET")
_GROUP: ContextVar[CheckGroup | None] = ContextVar("GROUP", default=None)


@contextmanager
def check_budget() -> Iterator[CheckGroup | None]:
    """Open the budget of one check, within its group, if any; yields the group."""
    group = _GROUP.get()
    token = _BUDGET.set(CheckBudget() if group is None else group.begin())
    try:
        yield group
    finally:
        _BUDGET.reset(token)


def spend(steps: int) -> None:
    _BUDGET.get().spend(steps)
