"""Assemble tool calls from streamed pieces.

OpenAI numbers a reply's calls by `index` and names each once, in its first piece. Other servers use index 0 for all
calls or none, omit ids, repeat one id, repeat the name in each piece, or send arguments as an object.
"""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from cachegraph.common.surrogates import mend

from ..tools.parse_calls import ParsedCall, call_of, parse_json

__all__ = ["ToolCallBuilder", "ToolCallPieces"]


_UNSAFE = re.compile(r"^\ufeff|\\u")  # what a strict parser refuses: a byte order mark, escapes of half a character


@dataclass
class ToolCallBuilder:
    """One call, as received so far."""

    id: str = ""
    name: str = ""
    arguments: str = ""
    index: int | None = None
    extra: Any = None  # `extra_content`: Gemini requires its signature of a call in later requests

    @property
    def is_complete(self) -> bool:
        """Whether the arguments are a complete JSON object."""
        return bool(self.arguments.strip()) and self.call.problem is None

    @property
    def call(self) -> ParsedCall:
        """Parse the call; `problem` states what is wrong with it."""
        if not self.name:
            return ParsedCall("", problem="this call names no tool")
        call = call_of({"name": self.name, "arguments": mend(self.arguments)})
        assert call is not None
        return call

    @property
    def arguments_text(self) -> str:
        """The arguments to send back: always a JSON object as text, since servers parse it."""
        call, text = self.call, mend(self.arguments)
        if isinstance(parse_json(text), dict) and not _UNSAFE.search(text):
            return text
        return "{}" if call.problem is not None else json.dumps(call.arguments, ensure_ascii=False)


@dataclass
class ToolCallPieces:
    """The calls of one reply, in order of their first pieces."""

    tools: Collection[str] = ()  # names that the model may call
    calls: list[ToolCallBuilder] = field(default_factory=list)

    def add(self, pieces: Any, *, is_message: bool = False) -> None:
        """Add the `tool_calls` of a delta, or of a message (`is_message`). Raises TypeError if they are malformed."""
        pieces = [pieces] if isinstance(pieces, dict) else pieces
        if not isinstance(pieces, list):
            raise TypeError("tool_calls is not a list")
        pieces = [piece for piece in pieces if piece is not None]
        for position, piece in enumerate(pieces):
            function = piece.get("function") or {}
            new = ToolCallBuilder(
                id="" if piece.get("id") is None else str(piece["id"]),
                name=_text(function.get("name")).strip(),
                arguments=_arguments(function.get("arguments", function.get("parameters"))),
                index=_number(piece.get("index"), position if len(pieces) > 1 else None),
                extra=piece.get("extra_content"),
            )
            continued = None if is_message and new.name else self._continued(new)
            if continued is None:
                self.calls.append(new)
            else:
                _extend(continued, new)

    def _continued(self, piece: ToolCallBuilder) -> ToolCallBuilder | None:
        """The call that a piece continues; None if it starts a new one."""
        call = self._same(piece)
        if call is None or not (piece.name and call.name):
            return call
        if piece.id and piece.id == call.id and call.arguments.strip() in ("", "{}"):
            return call
        if call.is_complete and piece.arguments.strip() and piece.arguments != call.arguments:
            return None
        # A complete name followed by another one: the first call has no arguments.
        return None if piece.name != call.name and call.name in self.tools else call

    def _same(self, piece: ToolCallBuilder) -> ToolCallBuilder | None:
        latest = list(reversed(self.calls))
        if piece.id:
            same_id = [call for call in latest if call.id == piece.id]
            if same_id and not (piece.name and None not in (piece.index, same_id[0].index)):
                return same_id[0]
            fits = same_id or [call for call in latest if not call.id and _may_get_id(call, piece)]
            return next((call for call in fits if call.index == piece.index), None)
        if piece.index is not None:
            return next((call for call in latest if call.index == piece.index), None)
        return latest[0] if latest and not piece.name else None


def _may_get_id(call: ToolCallBuilder, piece: ToolCallBuilder) -> bool:
    return not piece.name or (piece.name == call.name and not call.arguments)


def _extend(call: ToolCallBuilder, piece: ToolCallBuilder) -> None:
    call.id = call.id or piece.id
    if piece.name != call.name:
        call.name += piece.name
    if call.arguments.strip() == "{}" and piece.arguments.strip():
        call.arguments = piece.arguments  # an empty object was a placeholder
    elif not (piece.arguments == call.arguments and call.is_complete):  # else the server repeated the arguments
        call.arguments += piece.arguments
    call.extra = piece.extra if call.extra is None else call.extra


def _arguments(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _text(value: Any) -> str:
    if value is not None and not isinstance(value, str):
        raise TypeError("a tool's name is not text")
    return value or ""


def _number(value: Any, default: int | None) -> int | None:
    try:
        return default if value is None else int(value)
    except (TypeError, ValueError, OverflowError):
        return default
