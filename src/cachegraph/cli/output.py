"""Output of commands: all text that they print goes through here.

On a terminal, control characters of models, files and servers are replaced. Files and pipes get text unchanged.
"""

import sys
from collections.abc import Iterable
from typing import TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from cachegraph.common.printable import printable, printable_json

__all__ = ["TASK", "echo", "echo_json", "open_console", "width_of", "write"]


printed_json = False  # whether the command has printed its JSON
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


def echo(text: str = "", *, err: bool = False, end: str = "\n") -> None:
    """Print a text and a line break."""
    if err:
        write(printable(f"{text}{end}"), sys.stderr)
    else:
        write(f"{text}{end}")


def echo_json(text: str) -> None:
    """Print a JSON text, with control characters as JSON escapes."""
    global printed_json
    printed_json = True
    echo(printable_json(text))


def write(text: str, stream: TextIO | None = None) -> None:
    """Write a text to stdout, or to another stream, and flush it."""
    stream = stream or sys.stdout
    stream.write(printable(text) if stream.isatty() else text)
    stream.flush()
