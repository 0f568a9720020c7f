"""Render an agent's prompt: templates to messages, messages to one text, the text to token pieces around slots.

Every token keeps its origin: the input or upstream reply it comes from, and the characters it covers.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from cachegraph.channels.payload import Origin
from cachegraph.engine.text.tokenizer import Tokenizer
from cachegraph.errors import InputError

from ..base import Turn
from ..spec import AgentSpec
from .chat_layout import Mark, Message, lay_out, words_of
from .filters import Value
from .prompt_reads import prompt_reads
from .render_threads import TextWork
from .template import Kind, Rendered, Span, Template, TemplateProblem, compile_template

__all__ = [
    "Message",
    "Piece",
    "Prompt",
    "PromptTemplate",
    "Slot",
    "handed_over_by",
    "read_piece",
    "read_texts",
    "readable",
    "tokenize",
]


@dataclass(frozen=True)
class Piece:
    """Tokens that the receiver prefills itself. `origins` has one entry per token; None is template text."""

    ids: list[int]
    origins: list[Origin | None]
    text: str
    offsets: list[tuple[int, int]]
    contents: list[tuple[int, int]] = field(default_factory=list)  # of a whole prompt, by message


@dataclass(frozen=True)
class Slot:
    """The place of a grafted reply."""

    sender: str


@dataclass(frozen=True)
class Prompt:
    """A tokenized prompt. `messages` are its source, for a sharer that tokenizes them with its own chat template."""

    parts: list[Piece | Slot]
    messages: list[Message]
    chat: bool
    text: str  # the user's prompt alone, without system message and chat template
    contents: list[tuple[int, int]]  # by message, the range of its content in the text of all pieces

    @property
    def whole(self) -> Piece:
        """Join all pieces as if the slots were empty."""
        pieces = [part for part in self.parts if isinstance(part, Piece)]
        starts = [0, *accumulate(len(piece.text) for piece in pieces)]
        offsets = [
            (first + start, last + start)
            for piece, start in zip(pieces, starts, strict=False)
            for first, last in piece.offsets
        ]
        origins = [origin for piece in pieces for origin in piece.origins]
        return Piece(self.ids, origins, "".join(piece.text for piece in pieces), offsets, self.contents)

    @property
    def slots(self) -> list[tuple[int, str]]:
        """By slot, the number of tokens before it in the whole, and the sender it is for."""
        found, before = [], 0
        for part in self.parts:
            if isinstance(part, Slot):
                found.append((before, part.sender))
            else:
                before += len(part.ids)
        return found

    @property
    def ids(self) -> list[int]:
        return [token for part in self.parts if isinstance(part, Piece) for token in part.ids]

    @property
    def seen(self) -> set[str]:
        """The inputs and agents whose text this prompt contains."""
        return {origin.name for part in self.parts if isinstance(part, Piece) for origin in part.origins if origin}


class PromptTemplate:
    """An agent's compiled templates."""

    def __init__(self, agent: str, spec: AgentSpec, upstream: Sequence[str]):
        self._agent = agent
        self.reads = reads = prompt_reads(agent, spec, upstream)
        self._prompt, self._system, self._in_front = reads.prompt, reads.system, reads.in_front
        self._upstream = dict.fromkeys(upstream, "")

    def messages(self, values: Mapping[str, Any], slots: Collection[str] = ()) -> list[Message]:
        """Render the agent's messages for one turn; the slot of a sender without a reply is empty.

        Raises InputError if a template fails on these values.
        """
        values, out = {**self._upstream, **values}, []
        if self._system is not None:
            out.append(Message("system", self._render(self._system, values, slots)))
        for name in self._in_front:
            if name in slots or values.get(name):
                alone = compile_template("{{ " + name + " }}")
                out.append(Message("user", self._render(alone, values, slots)))
        out.append(Message("user", self._render(self._prompt, values, slots)))
        return out

    async def messages_in_thread(self, values: Mapping[str, Any], work: TextWork) -> list[Message]:
        """Render in a thread, without blocking the event loop."""
        if all(template.bounded for template in self.reads.templates):
            return self.messages(values)
        return await work.run(lambda: self.messages(values))

    def _render(self, template: Template, values: Mapping[str, Any], slots: Collection[str]) -> Rendered:
        try:
            return template.render(values, slots)
        except TemplateProblem as problem:
            raise InputError(
                f"the prompt of agent {self._agent!r} can't be rendered: {problem.message} (line {problem.line})"
            ) from problem


def handed_over_by(message: Message, reader: str) -> Message:
    """Mark the spans of a message of an agent that only reads as what its turn transfers.

    Text that comes from no input or other agent becomes the reader's. Its system message is not transferred.
    """
    if message.role == "system":
        spans = [
            Span(span.start, span.end, None, _OF_NOBODY.get(span.kind, span.kind)) for span in message.content.spans
        ]
    else:
        spans = [
            Span(span.start, span.end, reader, _OF_THE_READER[span.kind]) if span.kind in _OF_THE_READER else span
            for span in message.content.spans
        ]
    return Message(message.role, Rendered(message.content.text, tuple(spans)))


_OF_NOBODY: Mapping[Kind, Kind] = {"value": "made"}
_OF_THE_READER: Mapping[Kind, Kind] = {"template": "own", "made": "value"}


async def read_texts(turn: Turn) -> dict[str, Value]:
    """By sender, the text of its reply, for agents that read text only; decodes it now if needed."""
    payloads = [delivery.payload for delivery in turn.deliveries]
    return {
        payload.sender: Value(await payload.read(), payload.turn or payload.sender, payload.data)
        for payload in payloads
    }


def readable(messages: Sequence[Message]) -> str:
    """Format a prompt for people; roles other than the user are named."""
    return "\n\n".join(
        message.content.text if message.role == "user" else f"{message.role}: {message.content.text}"
        for message in messages
    )


def tokenize(messages: Sequence[Message], tokenizer: Tokenizer, chat: bool) -> Prompt:
    """Apply the chat template, if any, and tokenize the text around every slot."""
    text, marks, contents = lay_out(messages, tokenizer, chat)
    parts = _parts(text, marks, tokenizer, chat)
    slots = [mark.start for mark in marks if mark.kind == "slot"]
    inside = [(start - _before(slots, start), end - _before(slots, end)) for start, end in contents]
    return Prompt(parts, list(messages), chat, messages[-1].content.text, inside)


def _before(slots: Sequence[int], character: int) -> int:
    """The number of slot marks before a character. A mark is one character, and pieces contain none."""
    return sum(slot < character for slot in slots)


def _parts(text: str, marks: Sequence[Mark], tokenizer: Tokenizer, chat: bool) -> list[Piece | Slot]:
    parts: list[Piece | Slot] = []
    begin = 0
    for mark in marks:
        if mark.kind == "slot":
            parts += read_piece(text, begin, mark.start, marks, tokenizer, not chat and begin == 0)
            parts.append(Slot(mark.origin))
            begin = mark.end
    return [*parts, *read_piece(text, begin, len(text), marks, tokenizer, not chat and begin == 0)]


def read_piece(
    text: str, begin: int, end: int, marks: Sequence[Mark], tokenizer: Tokenizer, special: bool
) -> list[Piece]:
    """Tokenize the text from `begin` to `end` as a list of one piece; empty if there is not text."""
    words = [(max(start, begin) - begin, min(stop, end) - begin) for start, stop in words_of(marks)]
    ids, offsets = tokenizer.encode(text[begin:end], special=special, words=words)
    if not ids:
        return []
    values = [
        (mark.start - begin, mark.end - begin, mark.origin, mark.first)
        for mark in marks
        if mark.kind in ("value", "own")
    ]
    return [Piece(ids, _origins(offsets, sorted(values)), text[begin:end], offsets)]


def _origins(offsets: Sequence[tuple[int, int]], values: Sequence[tuple[int, int, str, int]]) -> list[Origin | None]:
    """By token, the origin of the span that contains its last character."""
    origins: list[Origin | None] = []
    place = 0
    for start, end in offsets:
        while place < len(values) and values[place][1] < end:
            place += 1
        if place == len(values) or start >= end or values[place][0] >= end:
            origins.append(None)
            continue
        span_start, _, name, first = values[place]
        origins.append(Origin(name, max(start - span_start, 0) + first, end - span_start + first))
    return origins
