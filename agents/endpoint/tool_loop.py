"""Tool loop of an agent behind an endpoint, with calls in API fields or in the text."""

import re
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any

from cachegraph.common.surrogates import mend

from ..tools.agent_tools import ToolRounds
from ..tools.parse_calls import ReplyTextStream
from .completion import REASONING, Completion
from .tool_calls import ToolCallBuilder

__all__ = ["complete_with_tools"]

Messages = list[dict[str, Any]]
Ask = Callable[[Messages, Callable[[str], None] | None, int], Awaitable[Completion]]


async def complete_with_tools(
    ask: Ask, messages: Messages, turns: ToolRounds, on_text: Callable[[str], None] | None
) -> Completion:
    """Complete, call tools and complete again until a reply calls none. The result counts the tokens of all replies."""
    speaker = ReplyTextStream(on_text)
    total = Completion()
    while True:
        heard = await ask(messages, speaker.push, total.completion_tokens)
        _add(total, heard)
        in_text = turns.hear(heard.text)
        begun = heard.calls.calls
        calls = [call.call for call in begun] or list(in_text.calls)
        speaker.end(heard.text if begun else in_text.said)
        if not calls:
            total.text = speaker.text
            return total
        results = await turns.make(calls)
        messages = [*messages, *(_answers(heard, results) if begun else _in_words(heard, results))]


def _answers(heard: Completion, results: list[str]) -> Messages:
    """The messages to send back: the reply with its calls, and the result of each call."""
    ids = _ids(heard.calls.calls)
    asked = [_sent_back(call, each) for call, each in zip(heard.calls.calls, ids, strict=True)]
    said: dict[str, Any] = {"role": "assistant", "content": heard.text or None, "tool_calls": asked}
    # Servers with a separate reasoning field require it in later requests while the model calls tools.
    said |= {name: mend(text) for name, text in heard.reasoning.items() if name in REASONING}
    if heard.reasoning_details:
        said["reasoning_details"] = heard.reasoning_details
    return [
        said,
        *({"role": "tool", "tool_call_id": each, "content": result} for each, result in zip(ids, results, strict=True)),
    ]


def _sent_back(call: ToolCallBuilder, call_id: str) -> dict[str, Any]:
    """Format a call so that every server can parse it: a tool name, and a JSON object as text."""
    name = re.sub(r"[^A-Za-z0-9_-]", "_", call.name)[:64] or "unnamed"
    out = {"id": call_id, "type": "function", "function": {"name": name, "arguments": call.arguments_text}}
    return out if call.extra is None else {**out, "extra_content": call.extra}


def _ids(calls: list[ToolCallBuilder]) -> list[str]:
    """Assign a unique id to each call, its own if unique. Mistral accepts nine letters and digits."""
    taken: list[str] = []
    spare = (f"call{number:05}" for number in count())
    for call in calls:
        own = call.id if call.id.isascii() and call.id.isprintable() and call.id not in taken else ""
        taken.append(own or next(each for each in spare if each not in taken))
    return taken


def _in_words(heard: Completion, results: list[str]) -> Messages:
    told = "\n".join(f"<tool_response>\n{result}\n</tool_response>" for result in results)
    return [{"role": "assistant", "content": heard.text}, {"role": "user", "content": told}]


def _add(whole: Completion, heard: Completion) -> None:
    whole.finish = heard.finish
    whole.refusal, whole.reasoning, whole.calls = heard.refusal, heard.reasoning, heard.calls
    whole.reasoning_tokens += heard.reasoning_tokens
    whole.prompt_tokens += heard.prompt_tokens
    whole.completion_tokens += heard.completion_tokens
    whole.first_piece = whole.first_piece or heard.first_piece
