"""Make text of models and files safe for a terminal.

Terminals execute control characters (OSC 52 writes the clipboard), bidirectional controls reorder visible text, and
invisible characters hide text. Each becomes U+FFFD. Characters that writing systems need stay: spaces of all widths,
combining marks, joiners between letters that join, variation selectors after a symbol.
"""

import re
import unicodedata

__all__ = ["printable", "printable_json", "printable_line"]

# Invisible, although their category is letter, mark or symbol.
_HIDDEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2028\u2029\u2800\u3164\ufe00-\ufe0f\uffa0\ufff9-\ufffc"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_JOINERS = "\u200c\u200d"
_SELECTORS = "\ufe0e\ufe0f"
_BEYOND_LATIN = 0x590  # Hebrew begins here; Latin, Greek and Cyrillic use no joiners


def printable(text: str) -> str:
    """Replace characters that a terminal would execute or hide; keep line breaks and tabs."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if _shows(char, index, text) else "\ufffd" for index, char in enumerate(text))


def printable_line(text: str) -> str:
    """The same on one line: collapse white space to single spaces."""
    return printable(" ".join(text.split()))


def printable_json(text: str) -> str:
    """Escape such characters in a JSON text's strings as `\\u`: the same value, safe for a terminal."""
    if text.isascii():
        return text.replace("\x7f", "\\u007f")
    return "".join(
        char if char in "\r\n\t" or _shows(char, index, text) else _escaped(char) for index, char in enumerate(text)
    )


def _escaped(char: str) -> str:
    halves = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{halves[at]:02x}{halves[at + 1]:02x}" for at in range(0, len(halves), 2))


def _shows(char: str, index: int, text: str) -> bool:
    if char in "\n\t" or " " <= char <= "~":
        return True
    before, after = text[index - 1 : index], text[index + 1 : index + 2]
    if char in _JOINERS:
        return _joins(before) and _joins(after)
    if char in _SELECTORS:
        return bool(before) and (before in "#*0123456789" or unicodedata.category(before) in ("So", "Sm", "Po", "Lo"))
    if _HIDDEN.match(char):
        return False
    return char.isprintable() or unicodedata.category(char) == "Zs"


def _joins(char: str) -> bool:
    """Whether a joiner next to this character can have an effect."""
    return bool(char) and (
        char in _SELECTORS or (ord(char) >= _BEYOND_LATIN and unicodedata.category(char)[0] in "LMS")
    )
