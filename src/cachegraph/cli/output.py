"""The one door to the screen: every text that a command prints goes through here.

On a terminal nothing that a model, a file or a server wrote can act as a command; into a file or a pipe a text goes as
it is.
"""

import sys
from collections.abc import Iterable
from typing import TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from cachegraph.common.printable import printable, printable_json

__all__ = ["TASK", "echo", "echo_json", "open_console", "width_of", "write"]


printed_json = False  # a command has printed its JSON
TASK = "{task.description}"  # what a bar says; with markup=False, since it may hold a stranger's names


class _SafeConsole(Console):
    """Prints no control character that isn't rich's own."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            safe = segment.text if segment.control else printable(segment.text)
            yield segment if safe == segment.text else Segment(safe, segment.style)


def open_console(*, stderr: bool = False, quiet: bool = False, soft_wrap: bool = False) -> Console:
    """A console for tables and notes. Texts mean themselves: no markup, no emoji codes, no highlighting."""
    return _SafeConsole(stderr=stderr, quiet=quiet, soft_wrap=soft_wrap, markup=False, emoji=False, highlight=False)


def width_of(shown: RenderableType, console: Console) -> int:
    """The columns that it takes where nothing of it is cut or wrapped."""
    return console.measure(shown, options=console.options.update(width=10_000)).maximum


def echo(text: str = "", *, err: bool = False, end: str = "\n") -> None:
    """Print a text and a line break."""
    if err:
        write(printable(f"{text}{end}"), sys.stderr)
    else:
        write(f"{text}{end}")


def echo_json(text: str) -> None:
    """Print a JSON text; what a screen would obey stands in it as escapes, wherever it goes."""
    global printed_json
    printed_json = True
    echo(printable_json(text))


def write(text: str, stream: TextIO | None = None) -> None:
    """Write a text to stdout, or to another stream, at once."""
    stream = stream or sys.stdout
    stream.write(printable(text) if stream.isatty() else text)
    stream.flush()
