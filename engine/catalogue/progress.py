"""Progress callbacks for long work that does not know who watches."""

from collections.abc import Callable

__all__ = ["Notice", "Progress", "log_notice", "silent"]

# (stage, done, total): bytes while fetching, tensors while converting; a total of 0 is not known.
Progress = Callable[[str, int, int], None]
Notice = Callable[[str], None]


def silent(stage: str, done: int, total: int) -> None:
    """Show nothing."""


def log_notice(text: str) -> None:
    """Show a licence's notice where no one else does: as a warning of the log, which goes to stderr."""
    import logging

    logging.getLogger("cachegraph").warning(text)
