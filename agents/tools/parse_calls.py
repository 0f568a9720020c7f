"""Parse the tool calls in a model's reply, in the formats that open models were trained on.

JSON in <tool_call> tags (Hermes, Qwen, SmolLM2), or a bare JSON object or array of them (Llama, Mistral), also in a
code fence. `arguments` or `parameters` holds the arguments, as an object or as its JSON text.
"""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from cachegraph.common import json_text

__all__ = ["Heard", "ParsedCall", "ReplyTextStream", "call_of", "hear", "parse_json"]

TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
FENCE = re.compile(r"\A```(?:json)?\s*\n(.*?)\n?```\s*\Z", re.DOTALL)
TAG = "<tool_call>"
OPENINGS = (TAG, "{", "[", "```")


@dataclass(frozen=True)
class ParsedCall:
    """One call as the model wrote it. `problem` states why it can't be executed."""

    tool: str
    arguments: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None


@dataclass(frozen=True)
class Heard:
    """A reply split into text and calls."""

    said: str
    calls: tuple[ParsedCall, ...]


def hear(text: str, tools: Collection[str]) -> Heard:
    """Parse the calls in a reply. Bare JSON is a call only if it names one of `tools`; JSON in tags always is."""
    found = list(TAGGED.finditer(text))
    if found:
        calls = [call for match in found for call in _tagged(match[1])]
        return Heard(text[: found[0].start()], tuple(calls))
    bare = text.strip()
    fenced = FENCE.match(bare)
    value = parse_json(fenced[1] if fenced else bare)
    items = value if isinstance(value, list) else [value]
    calls = [call for item in items if (call := call_of(item)) is not None and call.tool in tools]
    return Heard("", tuple(calls)) if calls and len(calls) == len(items) else Heard(text, ())


class ReplyTextStream:
    """Streams a model's text without its calls. `text` is everything emitted, over all rounds."""

    def __init__(self, on_text: Callable[[str], None] | None):
        self._on_text = on_text
        self._round = ""
        self._given = 0  # characters emitted in this round
        self.text = ""

    def push(self, piece: str) -> None:
        """Add the next piece of a reply; text is emitted once it can't become part of a call."""
        self._round += piece
        self._give(self._round[: _certain(self._round)])

    def end(self, said: str) -> None:
        """End the reply, whose text beside its calls is `said`; it starts with what was emitted."""
        if self._given or said.strip():
            self._give(said)
        self._round, self._given = "", 0

    def _give(self, said: str) -> None:
        piece = said[self._given :]
        if not piece:
            return
        if not self._given and self.text:
            piece = f"\n\n{piece}"
        self._given = len(said)
        self.text += piece
        if self._on_text is not None:
            self._on_text(piece)


def _certain(text: str) -> int:
    """The number of leading characters of a reply that are text, whatever follows."""
    start = text.lstrip()
    if any(start.startswith(opening) or opening.startswith(start) for opening in OPENINGS):
        return 0
    if TAG in text:
        return text.index(TAG)
    return len(text) - next((n for n in range(len(TAG) - 1, 0, -1) if text.endswith(TAG[:n])), 0)


def _tagged(body: str) -> list[ParsedCall]:
    value = parse_json(body.strip())
    items = value if isinstance(value, list) else [value]
    return [call_of(item) or ParsedCall("", problem=_why_not(body)) for item in items]


def _why_not(body: str) -> str:
    shown = body.strip() if len(body) <= 200 else f"{body.strip()[:200]}..."
    return f'this is not a call: {shown!r}; write {{"name": "...", "arguments": {{...}}}}'


def call_of(value: Any) -> ParsedCall | None:
    """Read a JSON value as a call; None if it is not one."""
    if not isinstance(value, dict):
        return None
    value = value.get("function", value) if isinstance(value.get("function"), dict) else value
    name = value.get("name")
    arguments = value.get("arguments", value.get("parameters", {}))
    if not isinstance(name, str) or not name:
        return None
    for _ in range(2):  # some models encode the JSON text twice
        if isinstance(arguments, str):
            arguments = parse_json(arguments) if arguments.strip() not in ("", "null") else {}
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, dict):
        return ParsedCall(name, problem="the arguments must be a JSON object")
    return ParsedCall(name, arguments)


def parse_json(text: str) -> Any:
    """Parse JSON strictly; `...` if invalid. NaN and numbers beyond doubles are invalid."""
    try:
        return json_text.parse_json(text, strict=True)
    except json_text.JSONProblem:
        return ...
