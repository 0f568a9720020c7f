"""Write the report's file atomically."""

from importlib.util import find_spec
from os import PathLike
from pathlib import Path

from cachegraph.common.atomic_write import write_atomically
from cachegraph.errors import ConfigError

from ..comparison import Comparison

__all__ = ["needs", "write_report"]


def needs() -> None:
    """Raise ConfigError if matplotlib is not installed; call it before a long evaluation."""
    if find_spec("matplotlib") is None:
        raise ConfigError("to draw a report the extra is missing: pip install 'cachegraph[eval]'")


def write_report(comparison: Comparison, path: str | PathLike[str]) -> None:
    """Write `comparison` as one self-contained HTML file. Raises ConfigError if the file can't be written."""
    needs()
    from .page import make_page

    try:
        write_atomically(Path(path), make_page(comparison))  # escapes surrogates in replies
    except OSError as error:
        raise ConfigError(f"the report can't be written to {str(path)!r}: {error.strerror or error}") from error
