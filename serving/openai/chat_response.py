"""The chat completion, whole or in chunks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from secrets import token_hex
from time import time
from typing import Any

from cachegraph import __version__
from cachegraph.graph.run.result import Result

from ..event_stream import Emit, event
from ..json_response import to_json
from ..usage import Usage, details_of, finish_of, usage_of

__all__ = ["DONE", "ChatAnswer", "chat_usage"]

DONE = event("[DONE]")
FINISHES = {"length": "length", "content_filter": "content_filter"}  # all others are `stop`


@dataclass(frozen=True)
class ChatAnswer:
    """Common data of a completion's chunks."""

    model: str
    speaker: str
    warnings: Sequence[str] = ()
    id: str = field(default_factory=lambda: f"chatcmpl-{token_hex(12)}")
    created: int = field(default_factory=lambda: int(time()))

    def whole(self, results: Sequence[Result]) -> dict[str, Any]:
        """Build the complete response."""
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": result.text, "refusal": None},
                "logprobs": None,
                "finish_reason": _finish(result),
            }
            for index, result in enumerate(results)
        ]
        return {
            **self._head("chat.completion"),
            "choices": choices,
            "usage": chat_usage(usage_of(results, self.speaker)),
            "cachegraph": details_of(results, self.warnings),
        }

    def begin(self, choice: int) -> bytes:
        """Build the first chunk of a choice, with the role."""
        return self._piece(choice, {"role": "assistant", "content": ""})

    def text(self, choice: int, text: str) -> bytes:
        """Build the next chunk of a choice's reply."""
        return self._piece(choice, {"content": text})

    def end(self, results: Sequence[Result], emit: Emit, *, with_usage: bool) -> None:
        """Emit finish reasons, details of the runs, and the end marker."""
        details = details_of(results, self.warnings)
        for index, result in enumerate(results):
            more = {"cachegraph": details} if index == len(results) - 1 else {}
            emit(self._piece(index, {}, _finish(result), **more))
        if with_usage:
            usage = chat_usage(usage_of(results, self.speaker))
            emit(event(to_json({**self._head("chat.completion.chunk"), "choices": [], "usage": usage})))
        emit(DONE)

    def _piece(self, choice: int, delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
        choices = [{"index": choice, "delta": delta, "logprobs": None, "finish_reason": finish}]
        return event(to_json({**self._head("chat.completion.chunk"), "choices": choices, **more}))

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": f"cachegraph-{__version__}",
        }


def chat_usage(usage: Usage) -> dict[str, Any]:
    """Format the usage of a chat; tokens of other agents count as reasoning."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
        "completion_tokens_details": {"reasoning_tokens": usage.unseen},
    }


def _finish(result: Result) -> str:
    return FINISHES.get(finish_of(result) or "", "stop")
