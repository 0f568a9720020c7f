"""The context around an agent's own messages: tool schemas and the session's earlier turns."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from cachegraph.engine.text.tokenizer import Tokenizer
from cachegraph.errors import ModelError

from .prompt import Message
from .template import Rendered, Span

__all__ = ["EARLIER", "Frame", "knows_tools", "plain", "remembered"]

EARLIER = "session:"  # origin of history text, for receivers of a cache; not a valid name of an input or agent


@dataclass(frozen=True)
class Frame:
    """The frame around the messages of one turn. The chat template lists `tools`, the system message `notes`."""

    history: Sequence[Message] = ()
    notes: str = ""
    tools: Sequence[dict[str, Any]] = ()

    def around(self, messages: Sequence[Message]) -> list[Message]:
        """Put the system message with the notes first, then the history, then the rest."""
        system = [message for message in messages[:1] if message.role == "system"]
        rest = messages[len(system) :]
        if self.notes:
            system = [_noted(system[0], self.notes) if system else plain("system", self.notes)]
        return [*system, *self.history, *rest]

    def tokenizer(self, tokenizer: Tokenizer) -> Tokenizer:
        """The tokenizer, with a chat template that lists the tools."""
        return replace(tokenizer, tools=self.tools) if self.tools else tokenizer


def plain(role: str, text: str, origin: str | None = None) -> Message:
    """Create a message without a template. `origin` names whose text it is, for receivers of a cache."""
    span = Span(0, len(text), origin, "made" if origin is None else "value")
    return Message(role, Rendered(text, (span,) if text else ()))


def remembered(messages: Sequence[Message]) -> list[tuple[str, str]]:
    """The (role, content) messages of a turn that a session keeps: all but the system message, which every turn
    renders.
    """
    return [(message.role, message.content.text) for message in messages if message.role != "system"]


def knows_tools(tokenizer: Tokenizer, tools: Sequence[dict[str, Any]]) -> bool:
    """Whether the model's chat template lists all these tools."""
    if not tokenizer.has_chat:
        return False
    try:
        text = replace(tokenizer, tools=tools).chat([{"role": "user", "content": "?"}])
    except ModelError:
        return False
    return all(tool["function"]["name"] in text for tool in tools)


def _noted(message: Message, notes: str) -> Message:
    content = message.content
    end = len(content.text)
    text = f"{content.text}\n\n{notes}"
    return Message(message.role, Rendered(text, (*content.spans, Span(end, len(text), None, "made"))))
