"""What stands around an agent's own messages: the tools it is told of, and earlier turns that it remembers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from cachegraph.engine.text.tokenizer import Tokenizer
from cachegraph.errors import ModelError

from .prompt import Message
from .template import Rendered, Span

__all__ = ["EARLIER", "Frame", "knows_tools", "plain", "remembered"]

EARLIER = "session:"  # whose text history is, for receivers of a cache; no input and no agent can be called so


@dataclass(frozen=True)
class Frame:
    """Set around the messages of one turn. The chat template tells of `tools`, the system message of `notes`."""

    history: Sequence[Message] = ()
    notes: str = ""
    tools: Sequence[dict[str, Any]] = ()

    def around(self, messages: Sequence[Message]) -> list[Message]:
        """The system message with the notes, then the history, then the rest."""
        system = [message for message in messages[:1] if message.role == "system"]
        rest = messages[len(system) :]
        if self.notes:
            system = [_noted(system[0], self.notes) if system else plain("system", self.notes)]
        return [*system, *self.history, *rest]

    def tokenizer(self, tokenizer: Tokenizer) -> Tokenizer:
        """The tokenizer whose chat template tells of the tools."""
        return replace(tokenizer, tools=self.tools) if self.tools else tokenizer


def plain(role: str, text: str, origin: str | None = None) -> Message:
    """A message that no template made. `origin`: whose text it is, for those whom a cache hands it to."""
    span = Span(0, len(text), origin, "made" if origin is None else "value")
    return Message(role, Rendered(text, (span,) if text else ()))


def remembered(messages: Sequence[Message]) -> list[tuple[str, str]]:
    """What of a turn's own messages a session keeps: all but the system message, which every turn has anew."""
    return [(message.role, message.content.text) for message in messages if message.role != "system"]


def knows_tools(tokenizer: Tokenizer, tools: Sequence[dict[str, Any]]) -> bool:
    """Whether the model's chat template tells of all these tools."""
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
