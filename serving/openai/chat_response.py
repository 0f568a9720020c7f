"""The answer to a chat request, whole or in pieces."""

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
    """What all pieces of an answer have in common."""

    model: str
    speaker: str
    warnings: Sequence[str] = ()
    id: str = field(default_factory=lambda: f"chatcmpl-{token_hex(12)}")
    created: int = field(default_factory=lambda: int(time()))

    def whole(self, results: Sequence[Result]) -> dict[str, Any]:
        """The answer in one piece."""
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
        """The first piece of a choice: who speaks."""
        return self._piece(choice, {"role": "assistant", "content": ""})

    def text(self, choice: int, text: str) -> bytes:
        """The next piece of a choice's reply."""
        return self._piece(choice, {"content": text})

    def end(self, results: Sequence[Result], emit: Emit, *, with_usage: bool) -> None:
        """Why each choice ended, what the runs did, and the mark of the end."""
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
    """The usage of a chat; tokens that nobody sees count as reasoning."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
        "completion_tokens_details": {"reasoning_tokens": usage.unseen},
    }


def _finish(result: Result) -> str:
    return FINISHES.get(finish_of(result) or "", "stop")
