"""Texts that a command is given: on its command line, in a file, on stdin. All are UTF-8, or refused in a sentence."""

import sys
from pathlib import Path

from cachegraph.errors import InputError

__all__ = ["TextProblem", "check_arguments", "read_text"]


class TextProblem(ValueError):
    """Why a text can't be read: the end of a sentence."""


def read_text(path: str) -> str:
    """A UTF-8 file's text, or that of stdin for `-`, without a byte order mark. Raises TextProblem."""
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
    """Refuse what the shell gave in another encoding than UTF-8: Python keeps such bytes as half surrogates."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            shown = argument.encode("utf-8", "replace").decode()
            at = argument.partition("=")[0] if "=" in argument[: error.start] else shown[:40]
            raise InputError(f"the argument {at!r} is not UTF-8 text; give it as UTF-8, or in a file") from error
