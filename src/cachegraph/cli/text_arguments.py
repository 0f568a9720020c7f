"""Text of commands from arguments, variables, files and stdin. It must be UTF-8."""

import os
import sys
from pathlib import Path

from cachegraph.errors import InputError

__all__ = ["TextProblem", "check_arguments", "check_variables", "read_text"]


class TextProblem(ValueError):
    """A text can't be read. The message is the end of a sentence."""


def read_text(path: str) -> str:
    """The text of a UTF-8 file, or of stdin for `-`, without a byte order mark. Raises TextProblem."""
    try:
        raw = _stdin() if path == "-" else Path(path).read_bytes()
    except (OSError, ValueError) as error:  # a NUL in the name is a ValueError
        raise TextProblem(getattr(error, "strerror", None) or "the path can't be used") from error
    if isinstance(raw, str):
        return raw.removeprefix("\ufeff")
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise TextProblem(f"it is not UTF-8 text (byte {error.start + 1} is 0x{raw[error.start]:02x})") from error


def _stdin() -> bytes | str:
    if sys.stdin is None:
        raise TextProblem("stdin is closed")
    buffer = getattr(sys.stdin, "buffer", None)
    return buffer.read() if buffer is not None else sys.stdin.read()


def check_arguments(arguments: list[str]) -> None:
    """Raise InputError for arguments that are not UTF-8. Python holds their bytes as lone surrogates."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            shown = argument.encode("utf-8", "replace").decode()
            at = argument.partition("=")[0] if "=" in argument[: error.start] else shown[:40]
            raise InputError(f"the argument {at!r} is not UTF-8 text; give it as UTF-8, or in a file") from error


def check_variables(arguments: list[str]) -> None:
    """Raise InputError for environment variables with options of this command that are not UTF-8."""
    command = next((argument for argument in arguments if not argument.startswith("-")), None)
    if command is None:
        return
    for name, value in os.environ.items():
        if name.startswith(f"CACHEGRAPH_{command.upper()}_") and not _is_utf8(value):
            raise InputError(f"the environment variable {name!r} is not UTF-8 text; give it as UTF-8")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
