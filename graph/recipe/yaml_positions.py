"""Parse YAML into values with line and column.

Built from libyaml's event stream in one pass without recursion. Every value has its line and column. Duplicate keys
and foreign tags are problems. Every use of an alias adds its size to a limit, so that a small file can't expand into
a large recipe. Independent of the recipe format.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import yaml

from cachegraph.errors import Problem, RecipeError

from .yaml_syntax import explain_syntax

__all__ = ["Document", "Path", "YamlNode", "read_yaml"]

MAX_DEPTH = 64
MAX_WEIGHT = 500_000  # values after alias expansion; 1,000 characters weigh as much as a value

Path = tuple[str | int, ...]

BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")  # line breaks of YAML 1.1
PAIR = re.compile(r"((?<!\\)(?:\\\\)*)(\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})")
JOINED = re.compile(r"\\U[0-9a-f]{8}")  # two characters shorter than the surrogate pair it replaces
FORBIDDEN = re.compile("[^\t\n\r -~\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
TAG = "tag:yaml.org,2002:"
TEXTS = {"str", "timestamp", "value"}
# Use libyaml's event parser only: its composer recurses, so a deep file would crash the process.
Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
RESOLVERS: dict[str, list[tuple[str, re.Pattern[str]]]] = yaml.SafeLoader.yaml_implicit_resolvers
SCALARS = yaml.constructor.SafeConstructor()


@dataclass(slots=True, eq=False)
class YamlNode:
    """A value and its position: 0-based line and column; start and end are character offsets in the file."""

    line: int
    column: int
    start: int
    end: int
    value: Any = None
    raw: str | None = None  # source text of a scalar, without its quotes
    style: str | None = None  # quoting style of a scalar: ' " | > or None
    children: "dict[str, YamlNode] | list[YamlNode] | None" = None
    keys: dict[str, tuple[int, int]] = field(default_factory=dict)
    weight: int = 1


@dataclass(eq=False)
class Document:
    """A parsed file."""

    name: str
    text: str
    root: YamlNode
    problems: list[Problem] = field(default_factory=list)
    written: str = ""  # the text before escape pairs were joined

    @cached_property
    def lines(self) -> list[str]:
        return BREAK.split(self.text)

    def find(self, path: Path) -> tuple[YamlNode, int]:
        """Return the node at the path, or its nearest ancestor, and the number of keys that matched."""
        node = self.root
        for steps, part in enumerate(path):
            children = node.children
            if isinstance(children, dict) and part in children:
                node = children[str(part)]
            elif isinstance(children, list) and isinstance(part, int) and part < len(children):
                node = children[part]
            else:
                return node, steps
        return node, len(path)

    def problem(self, message: str, path: Path = (), hint: str = "", at_key: bool = False) -> Problem:
        """Build a problem at the value of a path, or at its last key."""
        node, _ = self.find(path[:-1] if at_key else path)
        line, column = node.keys.get(str(path[-1]), (node.line, node.column)) if at_key else (node.line, node.column)
        return self.at(message, line, column, hint)

    def at(self, message: str, line: int, column: int, hint: str = "") -> Problem:
        """Build a problem at a 0-based line and column."""
        source = self.lines[line] if line < len(self.lines) else ""
        if self.written and self.written != self.text:
            column += 2 * len(JOINED.findall(source[:column]))
            source = BREAK.split(self.written)[line] if source else ""
        message = message if len(message) <= 600 else f"{message[:600]}..."
        return Problem(message, self.name, line + 1, column + 1, source, hint)


def read_yaml(text: str, name: str) -> Document:
    """Parse one document. Raises RecipeError for invalid YAML; collects lesser problems in `problems`."""
    joined = _with_whole_pairs(text)
    builder = _Builder(Document(name, joined, YamlNode(0, 0, 0, 0), written=text))
    text = joined
    try:
        for event in _events(text):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        raise RecipeError([explain_syntax(builder.document, error)]) from error
    except (yaml.reader.ReaderError, UnicodeEncodeError) as error:
        bad = FORBIDDEN.search(text)
        index = bad.start() if bad else 0
        before = BREAK.split(text[:index])
        message = f"the file holds the control character {text[index : index + 1]!r}"
        problem = builder.document.at(message, len(before) - 1, len(before[-1]), "remove it")
        raise RecipeError([problem]) from error
    return builder.document


def _with_whole_pairs(text: str) -> str:
    """Join the surrogate escape pairs of a JSON file; YAML writes a character beyond U+FFFF as one escape."""
    if not PAIR.search(text):
        return text
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return text  # YAML: the parser reports the invalid escape
    return PAIR.sub(_one_escape, text)


def _one_escape(pair: re.Match[str]) -> str:
    high, low = (int(half, 16) for half in pair[2].lower().split("\\u")[1:])
    return f"{pair[1]}\\U{0x10000 + (high - 0xD800) * 0x400 + low - 0xDC00:08x}"


def _events(text: str) -> Iterator[Any]:
    loader = Loader(text)
    try:
        while loader.check_event():
            yield loader.get_event()
    finally:
        loader.dispose()


class _Builder:
    def __init__(self, document: Document):
        self.document = document
        self.open: list[tuple[YamlNode, str | None]] = []  # open containers, each with its anchor
        self.pending: list[tuple[str, tuple[int, int]] | None] = []  # keys of open containers without a value yet
        self.anchors: dict[str, YamlNode] = {}
        self.documents = 0
        self.weight = 0

    def take(self, event: Any) -> None:
        match event:
            case yaml.ScalarEvent():
                node = self._node(event)
                self._scalar(node, event)
                self._close(node, event.anchor)
            case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                self._container(event)
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                node, anchor = self.open.pop()
                self.pending.pop()
                end: Any = event.end_mark
                node.end = end.index
                if isinstance(node.children, list):
                    node.value = tuple(child.value for child in node.children)
                self._close(node, anchor)
            case yaml.AliasEvent():
                self._alias(event)
            case yaml.DocumentStartEvent():
                self.documents += 1
                if self.documents > 1:
                    self._stop("a recipe is one YAML document", event, "put the second one into a file of its own")

    def _node(self, event: Any) -> YamlNode:
        start = event.start_mark
        return YamlNode(start.line, start.column, start.index, event.end_mark.index)

    def _container(self, event: Any) -> None:
        node = self._node(event)
        if len(self.open) >= MAX_DEPTH:
            self._stop(f"the file nests deeper than {MAX_DEPTH} levels", event, "make it flatter")
        is_map = isinstance(event, yaml.MappingStartEvent)
        node.children = {} if is_map else []
        node.value = {} if is_map else ()
        if event.tag is not None and event.tag not in (TAG + "map", TAG + "seq", "!"):
            self._tag(event)
        self.open.append((node, event.anchor))
        self.pending.append(None)

    def _scalar(self, node: YamlNode, event: Any) -> None:
        node.raw, node.style = event.value, event.style
        node.weight = 1 + len(event.value) // 1000
        tag = _implicit(event.value) if event.implicit[0] else (event.tag or TAG + "str").removeprefix(TAG)
        if (event.implicit[0] is False and event.implicit[1]) or tag in TEXTS or tag == "!":
            node.value = event.value
        elif tag in ("int", "float", "bool", "null"):
            node.value = self._construct(tag, event)
        elif tag == "merge":
            self._note(
                "merge keys ('<<') are not part of a recipe", event, "write the keys out, or alias a whole value"
            )
            node.value = event.value
        else:
            self._tag(event)
            node.value = event.value

    def _construct(self, tag: str, event: Any) -> Any:
        scalar = yaml.ScalarNode(TAG + tag, event.value)
        try:
            return getattr(SCALARS, f"construct_yaml_{tag}")(scalar)
        except (ValueError, LookupError, OverflowError, AttributeError):
            self._note(f"this can't be read as {tag!r}", event, "put it in quotes if text is meant")
            return event.value

    def _alias(self, event: Any) -> None:
        if event.anchor not in self.anchors:
            self._stop(f"alias '*{event.anchor}' has no finished anchor '&{event.anchor}' before it", event)
        target = self.anchors[event.anchor]
        start = event.start_mark
        node = YamlNode(start.line, start.column, start.index, event.end_mark.index, target.value, target.raw)
        # The copy takes the alias's position, so that problems point at the use; its children keep theirs.
        node.style, node.children, node.keys, node.weight = "*", target.children, target.keys, target.weight
        self._close(node, None)

    def _close(self, node: YamlNode, anchor: str | None) -> None:
        """Add a completed value to its container."""
        if anchor is not None:
            self.anchors[anchor] = node
        if not self.open:
            self.document.root = node
            return
        parent = self.open[-1][0]
        parent.weight += node.weight
        if parent.weight > MAX_WEIGHT:
            message = f"the file grows past {MAX_WEIGHT:,} values once its aliases are written out"
            raise RecipeError([self.document.at(message, node.line, node.column, "use fewer aliases")])
        if isinstance(parent.children, list):
            parent.children.append(node)
        elif isinstance(parent.children, dict):
            self._entry(parent, parent.children, node)

    def _entry(self, parent: YamlNode, children: dict[str, YamlNode], node: YamlNode) -> None:
        key, self.pending[-1] = self.pending[-1], None
        if key is None:
            self.pending[-1] = self._key(parent, node)
        elif key[0] in parent.keys:
            first = parent.keys[key[0]][0] + 1
            problem = self.document.at(f"duplicate key {key[0]!r}", *key[1], f"line {first} has it first; remove one")
            self.document.problems.append(problem)
        else:
            parent.keys[key[0]] = key[1]
            children[key[0]] = node
            parent.value[key[0]] = node.value

    def _key(self, parent: YamlNode, node: YamlNode) -> tuple[str, tuple[int, int]]:
        place = (node.line, node.column)
        if node.raw is None:
            # Unquoted '{{ x }}' also gets here; fields that require text report it.
            if not self.document.text.startswith("{{", parent.start):
                problem = self.document.at("a list or mapping can't be a key", *place, "use plain text")
                self.document.problems.append(problem)
            return f"<key at {node.line + 1}:{node.column + 1}>", place
        if not isinstance(node.value, str):
            kind = "a truth value" if isinstance(node.value, bool) else "nothing" if node.value is None else "a number"
            hint = f"write '{node.raw}' in quotes"
            problem = self.document.at(f"the key {node.raw} is {kind} in YAML, and keys are text", *place, hint)
            self.document.problems.append(problem)
        return node.raw, place

    def _tag(self, event: Any) -> None:
        self._note(f"the tag '{event.tag}' is not part of a recipe", event, "remove it")

    def _note(self, message: str, event: Any, hint: str = "") -> None:
        mark = event.start_mark
        self.document.problems.append(self.document.at(message, mark.line, mark.column, hint))

    def _stop(self, message: str, event: Any, hint: str = "") -> Any:
        mark = event.start_mark
        raise RecipeError([self.document.at(message, mark.line, mark.column, hint)])


def _implicit(text: str) -> str:
    """Return the tag that YAML 1.1 resolves an unquoted scalar to."""
    for tag, pattern in RESOLVERS.get(text[:1], []):
        if pattern.match(text):
            return tag.removeprefix(TAG)
    return "str"
