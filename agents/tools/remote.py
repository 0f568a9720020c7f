"""An agent behind an endpoint at work with tools: calls as the API has them, or in the text."""

from collections.abc import Awaitable, Callable
from typing import Any

from ..completions import Completion
from .belt import Turns
from .calls import Call, Speaker, call_of

__all__ = ["complete_with_tools"]

Messages = list[dict[str, Any]]
Ask = Callable[[Messages, Callable[[str], None] | None], Awaitable[Completion]]


async def complete_with_tools(
    ask: Ask, messages: Messages, turns: Turns, on_text: Callable[[str], None] | None
) -> Completion:
    """Ask, call and ask again until a reply calls nothing. What comes back counts all the tokens of all replies."""
    speaker = Speaker(on_text)
    whole = Completion()
    while True:
        heard = await ask(messages, speaker.push)
        _add(whole, heard)
        in_text = turns.hear(heard.text)
        calls = [_call(call) for call in heard.calls.values()] or list(in_text.calls)
        speaker.end(heard.text if heard.calls else in_text.said)
        if not calls:
            whole.text = speaker.text
            return whole
        results = await turns.make(calls)
        messages = [*messages, *(_answers(heard, results) if heard.calls else _in_words(heard, results))]


def _call(heard: dict[str, str]) -> Call:
    return call_of(heard) or Call("", problem="this call names no tool")


def _answers(heard: Completion, results: list[str]) -> Messages:
    asked = [
        {"id": call["id"], "type": "function", "function": {"name": call["name"], "arguments": call["arguments"]}}
        for call in heard.calls.values()
    ]
    return [
        {"role": "assistant", "content": heard.text or None, "tool_calls": asked},
        *(
            {"role": "tool", "tool_call_id": call["id"], "content": result}
            for call, result in zip(asked, results, strict=True)
        ),
    ]


def _in_words(heard: Completion, results: list[str]) -> Messages:
    told = "\n".join(f"<tool_response>\n{result}\n</tool_response>" for result in results)
    return [{"role": "assistant", "content": heard.text}, {"role": "user", "content": told}]


def _add(whole: Completion, heard: Completion) -> None:
    whole.finish = heard.finish
    whole.prompt_tokens += heard.prompt_tokens
    whole.completion_tokens += heard.completion_tokens
    whole.first_piece = whole.first_piece or heard.first_piece
