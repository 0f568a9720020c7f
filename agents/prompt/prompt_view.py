"""A prompt as people look at it: parts by origin, and the tokens of an edge side by side. No torch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from .chat_layout import Message

__all__ = [
    "MessagesView",
    "PartKind",
    "PromptPart",
    "PromptSnapshot",
    "PromptView",
    "TokenAlignment",
    "join_parts",
]

# Text of templates; text of inputs and replies; entries of another agent's cache; words whose KV a sharer corrected.
PartKind = Literal["template", "words", "grafted", "fused"]


@dataclass(frozen=True)
class PromptPart:
    """A stretch of a prompt of one origin."""

    kind: PartKind
    text: str
    tokens: int = 0  # 0: unknown, the model is elsewhere
    source: str | None = None  # the input or agent whose text it is
    by: tuple[str, ...] = ()  # senders whose caches it comes from, or that corrected it


@dataclass(frozen=True)
class TokenAlignment:
    """The tokens of a receiver's row over those of a sharer. `pairs`: (index in `receiver`, index in `sharer`)."""

    kind: Literal["graft", "fuse"]
    receiver: Sequence[str]
    sharer: Sequence[str]
    pairs: Sequence[tuple[int, int]]


class PromptView(Protocol):
    """A prompt that an agent has read. Parts and alignments are computed when they are asked for."""

    @property
    def tokens(self) -> int:
        """The number of its tokens, grafts included; 0 if unknown."""

    def parts(self) -> list[PromptPart]:
        """The parts of the prompt in order."""

    def alignments(self) -> dict[str, list[TokenAlignment]]:
        """By sender, how its tokens stand for those of this prompt; only for edges whose cache was used."""


@dataclass(frozen=True, eq=False)
class MessagesView:
    """The prompt of an agent whose model is elsewhere: its messages."""

    messages: Sequence[Message]

    @property
    def tokens(self) -> int:
        return 0

    def parts(self) -> list[PromptPart]:
        found = []
        for message in self.messages:
            found.append(PromptPart("template", f"[{message.role}]\n"))
            for span in message.content.spans:
                kind: PartKind = "words" if span.kind in ("value", "made") else "template"
                found.append(PromptPart(kind, message.content.text[span.start : span.end], source=span.origin))
            found.append(PromptPart("template", "\n\n"))
        return join_parts(found)

    def alignments(self) -> dict[str, list[TokenAlignment]]:
        return {}


@dataclass(frozen=True, eq=False)
class PromptSnapshot:
    """A view whose parts and alignments are computed, so that it can go to another process."""

    tokens: int
    found_parts: list[PromptPart]
    found_alignments: dict[str, list[TokenAlignment]]

    @classmethod
    def of(cls, view: PromptView) -> "PromptSnapshot":
        """Compute all that a view shows. May take milliseconds for a long prompt."""
        return cls(view.tokens, view.parts(), view.alignments())

    def parts(self) -> list[PromptPart]:
        return self.found_parts

    def alignments(self) -> dict[str, list[TokenAlignment]]:
        return self.found_alignments


def join_parts(parts: Iterable[PromptPart]) -> list[PromptPart]:
    """Join neighbours that differ in nothing but their text."""
    joined: list[PromptPart] = []
    for part in parts:
        last = joined[-1] if joined else None
        if last is not None and (last.kind, last.source, last.by) == (part.kind, part.source, part.by):
            joined[-1] = replace(last, text=last.text + part.text, tokens=last.tokens + part.tokens)
        elif part.text or part.tokens:
            joined.append(part)
    return joined
