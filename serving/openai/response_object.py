"""A response, whole or as events."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from secrets import token_hex
from time import time
from typing import Any

from cachegraph.graph.run.result import Result

from ..event_stream import event
from ..json_response import to_json
from ..usage import details_of, finish_of, usage_of
from .response_request import ResponseRequest

__all__ = ["ResponseAnswer"]

REASONS = {"length": "max_output_tokens", "content_filter": "content_filter"}  # reasons for an incomplete response


@dataclass(frozen=True)
class ResponseAnswer:
    """Common data of a response's events."""

    id: str
    request: ResponseRequest
    speaker: str
    warnings: Sequence[str] = ()
    created: int = field(default_factory=lambda: int(time()))
    item: str = field(default_factory=lambda: f"msg_{token_hex(12)}")
    _numbers: "count[int]" = field(default_factory=count)

    def whole(self, result: Result) -> dict[str, Any]:
        """Build the complete response."""
        reason = REASONS.get(finish_of(result) or "")
        return {
            **self._head("incomplete" if reason else "completed"),
            "incomplete_details": {"reason": reason} if reason else None,
            "output": [self._message(result.text, "incomplete" if reason else "completed")],
            "usage": self._usage(result),
            "cachegraph": details_of([result], self.warnings),
        }

    def begin(self) -> list[bytes]:
        """Build the events before the first text."""
        running = {**self._head("in_progress"), "incomplete_details": None, "output": [], "usage": None}
        message = {**self._message("", "in_progress"), "content": []}
        return [
            self._event("response.created", response=running),
            self._event("response.in_progress", response=running),
            self._event("response.output_item.added", output_index=0, item=message),
            self._event("response.content_part.added", **self._place, part=_part("")),
        ]

    def text(self, text: str) -> bytes:
        """Build the event of a text delta."""
        return self._event("response.output_text.delta", **self._place, delta=text, logprobs=[])

    def end(self, result: Result) -> list[bytes]:
        """Build the events after the last text."""
        response = self.whole(result)
        status = response["status"]
        return [
            self._event("response.output_text.done", **self._place, text=result.text, logprobs=[]),
            self._event("response.content_part.done", **self._place, part=_part(result.text)),
            self._event("response.output_item.done", output_index=0, item=self._message(result.text, status)),
            self._event(f"response.{status}", response=response),
        ]

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self.item, "output_index": 0, "content_index": 0}

    def _event(self, name: str, **fields: Any) -> bytes:
        return event(to_json({"type": name, "sequence_number": next(self._numbers), **fields}), name)

    def _message(self, text: str, status: str) -> dict[str, Any]:
        return {"type": "message", "id": self.item, "status": status, "role": "assistant", "content": [_part(text)]}

    def _usage(self, result: Result) -> dict[str, Any]:
        usage = usage_of([result], self.speaker)
        return {
            "input_tokens": usage.prompt,
            "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
            "output_tokens": usage.completion,
            "output_tokens_details": {"reasoning_tokens": usage.unseen},
            "total_tokens": usage.prompt + usage.completion,
        }

    def _head(self, status: str) -> dict[str, Any]:
        asked = self.request
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "model": asked.model,
            "instructions": asked.instructions,
            "previous_response_id": asked.previous_response_id,
            "max_output_tokens": asked.max_output_tokens,
            "temperature": asked.temperature,
            "top_p": asked.top_p,
            "metadata": asked.metadata or {},
            "user": asked.user,
            "store": asked.store is not False,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "truncation": "disabled",
            "text": {"format": {"type": "text"} if asked.text is None or asked.text.format is None else _format(asked)},
        }


def _format(asked: ResponseRequest) -> dict[str, Any]:
    assert asked.text is not None
    assert asked.text.format is not None
    known = asked.text.format
    schema = {"name": "reply", "schema": known.json_schema} if known.type == "json_schema" else {}
    return {"type": known.type, **schema}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
