"""Output of commands: all text that they print goes through here, and tables through `console`.

On a terminal, control characters of models, files and servers are replaced. Files and pipes get text unchanged.
"""

import sys
from typing import TextIO

from cachegraph.common.printable import printable, printable_json

__all__ = ["echo", "echo_json", "write"]


printed_json = False  # whether the command has printed its JSON


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
