"""The report's file: whole or not at all."""

from importlib.util import find_spec
from os import PathLike
from pathlib import Path

from cachegraph.common.atomic_write import write_atomically
from cachegraph.errors import ConfigError

from ..comparison import Comparison

__all__ = ["needs", "write_report"]


def needs() -> None:
    """Raise ConfigError where what draws the charts is not installed: to be asked before hours of work."""
    if find_spec("matplotlib") is None:
        raise ConfigError("to draw a report the extra is missing: pip install 'cachegraph[eval]'")


def write_report(comparison: Comparison, path: str | PathLike[str]) -> None:
    """Write `comparison` as one HTML file that opens anywhere. Raises ConfigError where that can't be."""
    needs()
    from .page import make_page

    try:
        write_atomically(Path(path), make_page(comparison))  # whose replies may hold half a character
    except OSError as error:
        raise ConfigError(f"the report can't be written to {str(path)!r}: {error.strerror or error}") from error
