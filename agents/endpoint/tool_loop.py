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
        completion = await ask(messages, speaker.push, total.completion_tokens)
        _add(total, completion)
        in_text = turns.hear(completion.text)
        builders = completion.calls.calls
        calls = [call.call for call in builders] or list(in_text.calls)
        speaker.end(completion.text if builders else in_text.said)
        if not calls:
            total.text = speaker.text
            return total
        results = await turns.make(calls)
        messages = [*messages, *(_answers(completion, results) if builders else _in_words(completion, results))]


def _answers(completion: Completion, results: list[str]) -> Messages:
    """The messages to send back: the reply with its calls, and the result of each call."""
    ids = _ids(completion.calls.calls)
    tool_calls = [_sent_back(call, call_id) for call, call_id in zip(completion.calls.calls, ids, strict=True)]
    reply: dict[str, Any] = {"role": "assistant", "content": completion.text or None, "tool_calls": tool_calls}
    # Servers with a separate reasoning field require it in later requests while the model calls tools.
    reply |= {name: mend(text) for name, text in completion.reasoning.items() if name in REASONING}
    if completion.reasoning_details:
        reply["reasoning_details"] = completion.reasoning_details
    return [
        reply,
        *(
            {"role": "tool", "tool_call_id": call_id, "content": result}
            for call_id, result in zip(ids, results, strict=True)
        ),
    ]


def _sent_back(call: ToolCallBuilder, call_id: str) -> dict[str, Any]:
    """Format a call so that every server can parse it: a tool name, and a JSON object as text."""
    name = re.sub(r"[^A-Za-z0-9_-]", "_", call.name)[:64] or "unnamed"
    out = {"id": call_id, "type": "function", "function": {"name": name, "arguments": call.arguments_text}}
    return out if call.extra is None else {**out, "extra_content": call.extra}


def _ids(calls: list[ToolCallBuilder]) -> list[str]:
    """Assign a unique id to each call, its own if unique. Mistral accepts nine letters and digits."""
    ids: list[str] = []
    spare = (f"call{number:05}" for number in count())
    for call in calls:
        own = call.id if call.id.isascii() and call.id.isprintable() and call.id not in ids else ""
        ids.append(own or next(candidate for candidate in spare if candidate not in ids))
    return ids


def _in_words(completion: Completion, results: list[str]) -> Messages:
    responses = "\n".join(f"<tool_response>\n{result}\n</tool_response>" for result in results)
    return [{"role": "assistant", "content": completion.text}, {"role": "user", "content": responses}]


def _add(total: Completion, completion: Completion) -> None:
    total.finish = completion.finish
    total.refusal, total.reasoning, total.calls = completion.refusal, completion.reasoning, completion.calls
    total.reasoning_tokens += completion.reasoning_tokens
    total.prompt_tokens += completion.prompt_tokens
    total.completion_tokens += completion.completion_tokens
    total.first_piece = total.first_piece or completion.first_piece
