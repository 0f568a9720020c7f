"""libyaml's syntax errors in an author's terms: where the slip is, and what to write instead.

libyaml reports where it could not continue, which may be lines behind the slip; this file looks back for it.
"""

import re
import unicodedata
from typing import TYPE_CHECKING, NamedTuple

import yaml

from cachegraph.errors import Problem

if TYPE_CHECKING:
    from .yaml_positions import Document

__all__ = ["explain_syntax"]

QUOTE = "put it in quotes"
INDENT = "indent its lines further than the key"
TYPOGRAPHIC_QUOTE = re.compile("[:\\[{,-]\\s*([\u201c\u201d\u201e\u2018\u2019\u00ab])")  # where a value begins
# A space or a colon that is none, where a line is indented or behind its key.
ODD = re.compile("^ *(?:- *)?(?:[\\w.-]+:? *)?([\u00a0\u1680\u2000-\u200b\u202f\u205f\u2060\u3000\ufeff\uff1a])")
TEMPLATE = re.compile(r"[:\-,\[{]\s+(\{[{%#])")  # a value that starts with Jinja
TEMPLATE_LINE = re.compile(r"\s*\{[{%#]")
BLOCK_TEXT = re.compile(r":\s+([|>])[-+0-9]*\s*(?:#.*)?$")  # the last words of a line that a block of text follows
KEY = r"\s*(?:-\s+)?([\w.-]+)"
NO_SPACE = re.compile(KEY + r":(?=[^\s:/])")
EQUALS = re.compile(KEY + r"\s*=(?!=)")
NO_SPACE_DASH = re.compile(r"\s*(-)[{\[\w\"']")

# By a part of libyaml's sentence: ours, and what to do. The place is the one where libyaml stopped.
SAID = (
    ("mapping values are not allowed", "a second ': ' in this line", "put a value that holds ': ' in quotes"),
    ("unexpected end of stream", "a quote is opened and never closed", "close it"),
    ("unexpected document indicator", "a quote is opened and never closed", "close it"),
    (
        "unknown escape character",
        "unknown escape in a double-quoted text",
        "write \\\\ for a backslash, or use single quotes",
    ),
    ("unexpected ':'", "a text in brackets can't hold this ':'", "put the text in quotes"),
    ("hexdecimal number", "the escape names no character", "write the character itself"),
    ("invalid Unicode character escape", "the escape names no character", "write the character itself"),
    (
        "did not find expected ',' or",
        "a list or mapping in brackets is not closed here",
        "add a ',' or the closing bracket",
    ),
    ("did not find expected key", "this line doesn't fit the mapping around it", "check its indentation and quotes"),
    ("did not find expected '-' indicator", "this line doesn't fit the list around it", "check its indentation"),
    (
        "block sequence entries are not allowed",
        "a list can't begin on the line of its key",
        "put each '- ' on a line of its own, or a text in quotes",
    ),
    ("incompatible YAML document", "this YAML version is not supported", "remove the %YAML line"),
    ("directive", "a line can't start with '%'", "remove it, or indent and quote a text"),
    ("expected <document start>", "nothing may follow the end of the document, '...'", "remove the line '...'"),
    ("expected node content", "a value is missing", "write one, or close the brackets before"),
    ("tag", "a tag ('!...') is not part of a recipe", "remove it, or put a text that starts with '!' in quotes"),
)


class Place(NamedTuple):
    """A 0-based place, and its line."""

    line: int
    column: int
    source: str

    @property
    def character(self) -> str:
        return self.source[self.column : self.column + 1]


def explain_syntax(document: "Document", error: yaml.MarkedYAMLError) -> Problem:
    """Return the problem behind a syntax error."""
    said = error.problem or "this is not YAML"
    stopped = _place(document, error.problem_mark or error.context_mark)
    began = _place(document, error.context_mark) if error.context_mark is not None else stopped
    problem = _character(document, said, stopped, began) or _slip_before(document, said, stopped, began)
    if problem is not None:
        return problem
    if error.context_mark is not None and (("unexpected" in said and ":" not in said) or not stopped.source.strip()):
        stopped = began
    for sign, message, hint in SAID:
        if sign in said or sign in (error.context or ""):
            return document.at(message, stopped.line, stopped.column, hint)
    return document.at(f"this is not YAML: {said}", stopped.line, stopped.column)


def _place(document: "Document", mark: yaml.Mark | None) -> Place:
    line, column = (mark.line, mark.column) if mark is not None else (0, 0)
    return Place(line, column, document.lines[line] if line < len(document.lines) else "")


def _above(document: "Document", line: int) -> Place:
    """The start of the last line above that is neither empty nor a comment; the line itself if there is none."""
    for above in range(min(line, len(document.lines)) - 1, -1, -1):
        source = document.lines[above]
        if source.strip() and not source.lstrip().startswith("#"):
            return Place(above, len(source) - len(source.lstrip()), source)
    return Place(line, 0, "")


def _character(document: "Document", said: str, stopped: Place, began: Place) -> Problem | None:
    """A character that has a meaning of its own in YAML, or none where it seems to have one."""
    if "tab character" in said or ("cannot start any token" in said and stopped.character == "\t"):
        return document.at("a tab can't indent YAML", stopped.line, stopped.column, "use spaces")
    for place in (stopped, began, _above(document, stopped.line)):
        if found := ODD.match(place.source):
            name = unicodedata.name(found[1], "an invisible character").lower()
            message = f"the character U+{ord(found[1]):04X}, {name}, has no meaning in YAML"
            return document.at(message, place.line, found.start(1), "write a plain ' ' or ':'")
    if stopped.source.startswith("```"):
        return document.at("this is a fence of Markdown", stopped.line, 0, "remove the lines that start with '```'")
    if found := TYPOGRAPHIC_QUOTE.search(stopped.source):
        message = f"the typographic quote {found[1]!r} quotes nothing in YAML"
        return document.at(message, stopped.line, found.start(1), "write '\"'")
    for place in (stopped, began, *((_above(document, began.line),) if TEMPLATE_LINE.match(began.source) else ())):
        found = TEMPLATE.search(place.source)
        if found and not any(place.source[: found.start(1)].count(quote) % 2 for quote in "\"'"):
            return document.at(f"a value can't start with {found[1]!r}", place.line, found.start(1), QUOTE)
    return _start_of_value(document, said, stopped, began)


def _start_of_value(document: "Document", said: str, stopped: Place, began: Place) -> Problem | None:
    if "alphabetic or numeric character" in said and began.character:
        return document.at(f"a value can't start with {began.character!r}", began.line, began.column, QUOTE)
    if "comment or line break" in said and began.character in ("|", ">"):
        message = f"a text can't follow {began.character!r} on its line"
        return document.at(message, began.line, began.column, "start it on the next line, or put it in quotes")
    if "did not find expected ',' or" in said and stopped.character in ("{", "["):
        message = f"in brackets, a text can't hold {stopped.character!r}"
        return document.at(message, stopped.line, stopped.column, QUOTE)
    starts = ("cannot start any token", "mapping keys are not allowed", "mapping values are not allowed")
    at_value = any(sign in said for sign in starts[:2]) or (
        "expected node content" in said and stopped.character in ("}", "]", ",")
    )
    if starts[2] in said and stopped.source[: stopped.column].rstrip().endswith(":"):
        at_value = True
    if at_value and stopped.character:
        return document.at(f"a value can't start with {stopped.character!r}", stopped.line, stopped.column, QUOTE)
    before = stopped.source[: stopped.column].rstrip()
    if "did not find expected key" in said and before.endswith(("'", '"')):
        hint = f"write {'two single quotes' if before[-1] == chr(39) else chr(92) + before[-1]} for one inside the text"
        return document.at(f"a text ends at its second {before[-1]}", stopped.line, stopped.column, hint)
    return None


def _slip_before(document: "Document", said: str, stopped: Place, began: Place) -> Problem | None:
    """A slip in a line that YAML took for text, so that it stopped at a later one."""
    if "could not find expected ':'" in said:
        return _no_key(document, began)
    if "mapping values are not allowed" not in said:
        return None
    if found := NO_SPACE_DASH.match(stopped.source):
        return document.at("an item of a list needs a space behind its '-'", stopped.line, found.start(1), "write '- '")
    if ": " in stopped.source[: stopped.column]:
        return None  # the second in its line
    above = _above(document, stopped.line)
    if re.match(KEY + r":\s", above.source):
        if len(stopped.source) - len(stopped.source.lstrip()) <= above.column:
            return None
        message = "this line is indented further than the one above, so YAML reads it as part of that line's value"
        return document.at(message, stopped.line, stopped.column, "indent both alike")
    return _no_key(document, above) if above.source else None


def _no_key(document: "Document", place: Place) -> Problem:
    """A line that should be a key and its value."""
    above = _above(document, place.line)
    if found := NO_SPACE.match(place.source):
        message = f"the key {found[1]!r} needs a space behind its ':'"
        return document.at(message, place.line, found.end() - 1, f"write '{found[1]}: ...'")
    if found := EQUALS.match(place.source):
        message = f"{found[1]!r} is followed by '=', and a key by ':'"
        return document.at(message, place.line, found.end() - 1, f"write '{found[1]}: ...'")
    if found := BLOCK_TEXT.search(above.source):
        return document.at(f"the text of {found[1]!r} is not indented", place.line, place.column, INDENT)
    hint = "add ': ' and a value, or indent a text that continues the line above"
    return document.at("a key without ':'", place.line, place.column, hint)
