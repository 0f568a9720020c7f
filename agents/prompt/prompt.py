"""An agent's prompt on its way to tokens: templates to messages, messages to one text, the text to pieces around slots.

Every token remembers the span it came from: which input or which upstream reply, and which characters of it.
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
    "heard",
    "read_piece",
    "readable",
    "tokenize",
]


@dataclass(frozen=True)
class Piece:
    """Tokens that the receiver reads itself. `origins` has one entry a token; None is template text."""

    ids: list[int]
    origins: list[Origin | None]
    text: str
    offsets: list[tuple[int, int]]
    contents: list[tuple[int, int]] = field(default_factory=list)  # of a whole prompt: where messages' contents are


@dataclass(frozen=True)
class Slot:
    """The place of a grafted message."""

    sender: str


@dataclass(frozen=True)
class Prompt:
    """A prompt ready to be read. `messages` is what it was made of, for a sharer that reads it its own way."""

    parts: list[Piece | Slot]
    messages: list[Message]
    chat: bool
    text: str  # the user's prompt alone, without system message and chat template
    contents: list[tuple[int, int]]  # by message, where its content is in the text of all pieces

    @property
    def whole(self) -> Piece:
        """All pieces as one, as if nothing stood in the slots."""
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
        """By slot, how many tokens of the whole stand before it, and whose message it is for."""
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
        """The inputs and agents whose text stands in this prompt."""
        return {origin.name for part in self.parts if isinstance(part, Piece) for origin in part.origins if origin}


class PromptTemplate:
    """An agent's compiled templates."""

    def __init__(self, agent: str, spec: AgentSpec, upstream: Sequence[str]):
        self._agent = agent
        self.reads = reads = prompt_reads(agent, spec, upstream)
        self._prompt, self._system, self._in_front = reads.prompt, reads.system, reads.in_front
        self._upstream = dict.fromkeys(upstream, "")

    def messages(self, values: Mapping[str, Any], slots: Collection[str] = ()) -> list[Message]:
        """The agent's messages for one turn; of who has sent nothing the slot is empty.

        Raises InputError where a template fails on these values.
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
        """The same without keeping the event loop from others."""
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
    """A message of an agent that writes nothing, its spans marked as what the agent's turn hands over.

    Of the prompt that is all: what is not an input's or another agent's text is the reader's. Its system message is for
    itself.
    """
    if message.role == "system":
        spans = [
            Span(each.start, each.end, None, _OF_NOBODY.get(each.kind, each.kind)) for each in message.content.spans
        ]
    else:
        spans = [
            Span(each.start, each.end, reader, _OF_THE_READER[each.kind]) if each.kind in _OF_THE_READER else each
            for each in message.content.spans
        ]
    return Message(message.role, Rendered(message.content.text, tuple(spans)))


_OF_NOBODY: Mapping[Kind, Kind] = {"value": "made"}
_OF_THE_READER: Mapping[Kind, Kind] = {"template": "own", "made": "value"}


async def heard(turn: Turn) -> dict[str, Value]:
    """By sender the reply, for agents that read words alone; written now where it was not."""
    payloads = [delivery.payload for delivery in turn.deliveries]
    return {each.sender: Value(await each.read(), each.turn or each.sender, each.data) for each in payloads}


def readable(messages: Sequence[Message]) -> str:
    """A prompt as people read it; who speaks is said where it isn't the user."""
    return "\n\n".join(
        each.content.text if each.role == "user" else f"{each.role}: {each.content.text}" for each in messages
    )


def tokenize(messages: Sequence[Message], tokenizer: Tokenizer, chat: bool) -> Prompt:
    """Apply the chat template, or none, and read the result up to and behind every slot."""
    text, marks, contents = lay_out(messages, tokenizer, chat)
    parts = _parts(text, marks, tokenizer, chat)
    slots = [mark.start for mark in marks if mark.kind == "slot"]
    inside = [(start - _before(slots, start), end - _before(slots, end)) for start, end in contents]
    return Prompt(parts, list(messages), chat, messages[-1].content.text, inside)


def _before(slots: Sequence[int], character: int) -> int:
    """The marks of slots in front of a character: one character each, which no piece has."""
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
    """The text from `begin` to `end` as tokens, in a list of its own; none where there is nothing to read."""
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
    """A token belongs to the span that its last character is in."""
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
