"""The response message, whole or as events."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Any

from cachegraph.graph.run.result import Result

from ..event_stream import event
from ..json_response import to_json
from ..usage import details_of, finish_of, usage_of

__all__ = ["MessageAnswer"]

REASONS = {"length": "max_tokens", "refusal": "refusal", "content_filter": "refusal"}  # all others are `end_turn`


@dataclass(frozen=True)
class MessageAnswer:
    """Common data of a response's events. `stops` are the caller's stop strings, if only they cause a `stop`."""

    model: str
    speaker: str
    warnings: Sequence[str] = ()
    stops: Sequence[str] = ()
    id: str = field(default_factory=lambda: f"msg_{token_hex(12)}")

    def whole(self, result: Result) -> dict[str, Any]:
        """Build the complete response."""
        content = [{"type": "text", "text": result.text, "citations": None}]
        head = self._head(content, self._usage(result), **self._end(result))
        return {**head, "cachegraph": details_of([result], self.warnings)}

    def begin(self) -> list[bytes]:
        """Build the events before the first text. Input usage is known only when the run has ended."""
        usage = {"input_tokens": 0, "output_tokens": 0}
        empty = {"type": "text", "text": "", "citations": None}
        return [
            _event("message_start", message=self._head([], usage, stop_reason=None, stop_sequence=None)),
            _event("content_block_start", index=0, content_block=empty),
        ]

    def text(self, text: str) -> bytes:
        """Build the event of a text delta."""
        return _event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})

    def end(self, result: Result) -> list[bytes]:
        """Build the events after the last text."""
        details = details_of([result], self.warnings)
        return [
            _event("content_block_stop", index=0),
            _event("message_delta", delta=self._end(result), usage=self._usage(result), cachegraph=details),
            _event("message_stop"),
        ]

    def _head(self, content: list[Any], usage: dict[str, Any], **end: Any) -> dict[str, Any]:
        head = {"id": self.id, "type": "message", "role": "assistant", "model": self.model}
        return {**head, "content": content, **end, "usage": usage}

    def _end(self, result: Result) -> dict[str, Any]:
        finish = finish_of(result)
        if finish == "stop" and self.stops:
            return {"stop_reason": "stop_sequence", "stop_sequence": self.stops[0] if len(self.stops) == 1 else None}
        return {"stop_reason": REASONS.get(finish or "", "end_turn"), "stop_sequence": None}

    def _usage(self, result: Result) -> dict[str, Any]:
        usage = usage_of([result], self.speaker)
        return {
            "input_tokens": usage.prompt - usage.cached,  # this API counts cached tokens separately
            "cache_read_input_tokens": usage.cached,
            "cache_creation_input_tokens": 0,
            "output_tokens": usage.completion,
        }


def _event(name: str, **fields: Any) -> bytes:
    return event(to_json({"type": name, **fields}), name)
