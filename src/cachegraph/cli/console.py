"""Consoles for tables, notes and progress bars, without control characters of models, files and servers."""

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from cachegraph.common.printable import printable

__all__ = ["TASK", "open_console", "width_of"]

TASK = "{task.description}"  # the text of a bar; use with markup=False, since names in it are untrusted


class _SafeConsole(Console):
    """Prints no control characters except rich's own."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            safe = segment.text if segment.control else printable(segment.text)
            yield segment if safe == segment.text else Segment(safe, segment.style)


def open_console(*, stderr: bool = False, quiet: bool = False, soft_wrap: bool = False) -> Console:
    """A console for tables and notes, without markup, emoji codes and highlighting."""
    return _SafeConsole(stderr=stderr, quiet=quiet, soft_wrap=soft_wrap, markup=False, emoji=False, highlight=False)


def width_of(shown: RenderableType, console: Console) -> int:
    """Its width in columns if nothing is cut or wrapped."""
    return console.measure(shown, options=console.options.update(width=10_000)).maximum
