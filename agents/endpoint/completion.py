"""Assemble a completion from the events of a response: text, tool calls, usage, and finish reason.

Compatible servers differ in most fields. An unreadable event is an error; content parts other than text (pictures,
references) are ignored.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from cachegraph.common.surrogates import join_halves

from ..base import FinishReason
from .sse_decoder import ServerSentEvent
from .tool_calls import ToolCallPieces

__all__ = ["REASONING", "Completion", "Reported", "Unreadable", "error_in"]

FINISH_WORDS: dict[str, FinishReason] = {
    **dict.fromkeys(("stop", "end_turn", "stop_sequence", "eos", "eos_token", "completed", "complete", "end"), "stop"),
    **dict.fromkeys(("length", "max_tokens", "model_length", "max_output_tokens", "max_length"), "length"),
    **dict.fromkeys(("tool_calls", "tool_call", "tool_use", "function_call"), "tool_calls"),
    **dict.fromkeys(("content_filter", "content_filtered", "safety", "recitation", "sensitive"), "content_filter"),
    **dict.fromkeys(("blocklist", "prohibited_content", "spii", "image_safety", "moderation"), "content_filter"),
    **dict.fromkeys(("refusal", "refused"), "refusal"),
    **dict.fromkeys(("error", "abort", "aborted", "cancelled", "timeout", "network_error"), "error"),
    **dict.fromkeys(("malformed_function_call", "model_error", "insufficient_system_resource"), "error"),
}
REASONING = ("reasoning_content", "reasoning", "thinking")  # DeepSeek, vLLM, SGLang; OpenRouter, Ollama; others
_TEXT_PARTS = ("text", "output_text", "", None)


class Unreadable(Exception):
    """The event is not part of a chat completion."""


class Reported(Exception):
    """The server reports an error inside its response."""

    def __init__(self, error: Any):
        self.error = error
        super().__init__()

    @property
    def code(self) -> int | None:
        """The HTTP status of the error, if it names one."""
        error = self.error if isinstance(self.error, dict) else {}
        codes = (error.get(key) for key in ("code", "status", "status_code", "http_status"))
        return next((int(code) for code in map(str, codes) if code.isdecimal() and len(code) == 3), None)


@dataclass
class Completion:
    """A reply as received so far."""

    text: str = ""
    finish: FinishReason | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    first_piece: float | None = None  # perf_counter() at the first piece
    calls: ToolCallPieces = field(default_factory=ToolCallPieces)
    reasoning: dict[str, str] = field(default_factory=dict)  # by the field that carried it
    reasoning_details: list[Any] = field(default_factory=list)  # OpenRouter requires them in later requests
    refusal: str = ""
    ended: bool = False  # [DONE] or a finish reason was received
    _half: str = ""  # the first half of a surrogate pair, whose second half is in the next event

    @property
    def is_empty(self) -> bool:
        """Whether the reply has neither text nor tool calls yet."""
        return not (self.text or self.calls.calls)

    def add(self, event: ServerSentEvent) -> str:
        """Add an event; returns its text. Raises Unreadable or Reported."""
        data = event.data.strip().strip("\0")
        if not data or data == "[DONE]":
            self.ended = self.ended or bool(data)
            return ""
        try:
            said = json.loads(data)
        except (ValueError, RecursionError) as problem:
            if event.name == "error":
                raise Reported(data) from None
            raise Unreadable from problem
        said = said[0] if isinstance(said, list) and len(said) == 1 else said  # Gemini sends errors in a list
        if (error := error_in(said, event.name)) is not None:
            raise Reported(error)
        try:
            return self._take(said)
        except (TypeError, ValueError, AttributeError, LookupError, OverflowError, RecursionError) as problem:
            raise Unreadable from problem

    def close(self) -> str:
        """Return the text held back: half a surrogate pair becomes U+FFFD."""
        rest, self._half = ("\ufffd" if self._half else ""), ""
        self.text += rest
        if self.refusal.strip():
            self.finish = "refusal"
        return rest

    def _take(self, said: dict[str, Any]) -> str:
        self._count(said.get("usage"))
        choice = _first_choice(said.get("choices"))
        self._count(choice.get("usage"))  # Moonshot
        text = ""
        for key in ("delta", "message"):
            if isinstance(part := choice.get(key), dict):
                text += self._hear(part, is_message=key == "message")
            elif part:
                raise TypeError(f"{key} is not an object")
        reason = choice.get("finish_reason")
        if isinstance(reason, str) and reason:
            self.finish = FINISH_WORDS.get(reason.lower())
            self.ended = True
        text, self._half = join_halves(self._half, text)
        self.text += text
        return text

    def _hear(self, part: dict[str, Any], *, is_message: bool) -> str:
        pieces = list(_parts(part.get("content")))
        for name in REASONING:
            if isinstance(value := part.get(name), str) and value:
                self.reasoning[name] = self.reasoning.get(name, "") + value
        details = part.get("reasoning_details")
        self.reasoning_details += details if isinstance(details, list) else []
        if isinstance(refusal := part.get("refusal"), str):
            self.refusal += refusal
        for kind, piece in pieces:
            if kind == "refusal":
                self.refusal += piece
            elif kind == "thinking":
                self.reasoning["content"] = self.reasoning.get("content", "") + piece
        if calls := part.get("tool_calls"):
            self.calls.add(calls, is_message=is_message)
        elif isinstance(call := part.get("function_call"), dict):
            self.calls.add([{"function": call, "index": 0}], is_message=is_message)
        return "".join(piece for kind, piece in pieces if kind == "text")

    def _count(self, usage: Any) -> None:
        if not isinstance(usage, dict):
            return
        self.prompt_tokens = _count(usage.get("prompt_tokens"), self.prompt_tokens)
        self.completion_tokens = _count(usage.get("completion_tokens"), self.completion_tokens)
        details = usage.get("completion_tokens_details")
        if isinstance(details, dict):
            self.reasoning_tokens = _count(details.get("reasoning_tokens"), self.reasoning_tokens)


def error_in(said: Any, event: str = "") -> Any:
    """The error that an object reports; None if it reports none."""
    if not isinstance(said, dict):
        return said if event == "error" else None
    if error := said.get("error") or said.get("errors"):
        return error
    if event == "error" or said.get("object") == "error" or said.get("type") == "error":
        return said
    choices = said.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        return choices[0].get("error") or None  # OpenRouter
    # FastAPI and gateways send a message instead of a completion.
    is_answer = "choices" in said or "usage" in said
    return said if not is_answer and any(isinstance(said.get(key), str) for key in ("detail", "message")) else None


def _first_choice(choices: Any) -> dict[str, Any]:
    """The choice with index 0; {} if the event has none, as the one with the usage."""
    if not isinstance(choices, list | None):
        raise TypeError("choices is not a list")
    first: dict[str, Any] = next((choice for choice in choices or () if choice and not choice.get("index")), {})
    return first


def _parts(content: Any) -> Iterator[tuple[str, str]]:
    """Yield the kind and text of each part of a content: `text`, `thinking` or `refusal`."""
    if content is None or isinstance(content, str):
        yield "text", content or ""
        return
    parts = [content] if isinstance(content, dict) else content
    if not isinstance(parts, list):
        raise TypeError("content is not text")
    for part in parts:
        if isinstance(part, str):
            yield "text", part
        elif part.get("type") in _TEXT_PARTS:
            yield "text", _text(part.get("text"))
        elif part["type"] == "refusal":
            yield "refusal", _text(part.get("refusal"))
        elif part["type"] in ("thinking", "reasoning"):
            yield "thinking", _flat(part.get("thinking", part.get("text")))


def _flat(thoughts: Any) -> str:
    """Join Mistral's thinking, which is a list of texts."""
    if isinstance(thoughts, str):
        return thoughts
    parts: Iterable[Any] = thoughts if isinstance(thoughts, list) else ()
    return "".join(_text(part.get("text")) if isinstance(part, dict) else str(part) for part in parts)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        value = value.get("value")  # {"text": {"value": ...}}
    if value is not None and not isinstance(value, str):
        raise TypeError("a part's text is not text")
    return value or ""


def _count(value: Any, before: int) -> int:
    """Parse a number of tokens, given as a number or text; keeps the previous value if invalid."""
    try:
        count = int(float(value)) if value is not None else 0
    except (TypeError, ValueError, OverflowError):
        return before
    return count if 0 < count < 1 << 53 else before
