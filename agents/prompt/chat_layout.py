"""Lay out messages as one text, with or without the model's chat template, and mark whose text is where.

Messages that the template rejects still reach the model: neighbours of one role are joined by a blank line, and a
system message is put before the user's first message.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from cachegraph.engine.text.chat import ChatText, ContentSpan
from cachegraph.engine.text.chat_rules import ChatRules
from cachegraph.engine.text.tokenizer import Tokenizer

from .template import Rendered

__all__ = ["Layout", "Mark", "Message", "lay_out", "place_marks", "words_of"]

_SLOT = "￼"  # a slot's placeholder while a chat template is applied, which may trim or skip empty content
_BETWEEN = "\n\n"

# What a mark says of its characters: a value, and whose; a value and nobody's, or what was made of values;
# an agent's or an input's text that the program itself wrote; a slot.
MarkKind = Literal["value", "made", "own", "slot"]


@dataclass(frozen=True)
class Message:
    """One message of a chat, before the chat template."""

    role: str
    content: Rendered


class Mark(NamedTuple):
    """The characters [start, end): whose text they are, and from which of its characters on."""

    start: int
    end: int
    origin: str
    first: int
    kind: MarkKind


class Layout(NamedTuple):
    """The text of all messages, and by message the range of its content."""

    text: str
    marks: list[Mark]
    contents: list[tuple[int, int]]


@dataclass
class _Group:
    """Messages that the chat template receives as one. `members`: their indices and ranges in the joined text."""

    role: str
    text: str = ""
    spans: list[Mark] = field(default_factory=list)
    members: list[tuple[int, int, int]] = field(default_factory=list)

    def add(self, index: int, text: str, spans: Sequence[Mark]) -> None:
        if self.text and text:
            self.text += _BETWEEN
        start = len(self.text)
        self.text += text
        self.spans += [mark._replace(start=mark.start + start, end=mark.end + start) for mark in spans]
        self.members.append((index, start, len(self.text)))


def lay_out(messages: Sequence[Message], tokenizer: Tokenizer, chat: bool, *, slots: bool = True) -> Layout:
    """Lay out the messages; with `slots`, each slot becomes a marked character."""
    if not chat:
        groups = [_Group("")]
        for index, message in enumerate(messages):
            groups[0].add(index, *_marked(message.content, slots))
        rendered = ChatText(groups[0].text, (ContentSpan(0, len(groups[0].text)),))
    else:
        groups = _grouped(messages, tokenizer.rules, slots)
        rendered = tokenizer.render([{"role": group.role, "content": group.text} for group in groups])
    marks = [Mark(start, end, "", 0, "made") for start, end in rendered.foreign]
    contents = [(0, 0)] * len(messages)
    for group, place in zip(groups, rendered.contents, strict=True):
        marks += place_marks(group.spans, place)
        for index, start, end in group.members:
            contents[index] = _inside(place, start), _inside(place, end)
    for number, place in rendered.copies:
        again = place_marks(groups[number].spans, place)
        marks += [mark if mark.kind == "slot" else mark._replace(kind="made") for mark in again]
    return Layout(rendered.text, sorted(marks), contents)


def words_of(marks: Sequence[Mark]) -> list[tuple[int, int]]:
    """The ranges whose characters never become control tokens."""
    return [(mark.start, mark.end) for mark in marks if mark.kind in ("value", "made")]


def _grouped(messages: Sequence[Message], rules: ChatRules, slots: bool) -> list[_Group]:
    groups: list[_Group] = []
    waiting: list[tuple[int, str, list[Mark]]] = []  # system messages that the template rejects
    for index, message in enumerate(messages):
        text, spans = _marked(message.content, slots)
        if message.role == "system" and not rules.system:
            waiting.append((index, text, spans))
            continue
        if not groups or groups[-1].role != message.role or rules.neighbours:
            groups.append(_Group(message.role))
        if message.role == "user":
            for system_message in waiting:
                groups[-1].add(*system_message)
            waiting = []
        groups[-1].add(index, text, spans)
    if waiting:
        groups.append(_Group("user"))
        for system_message in waiting:
            groups[-1].add(*system_message)
    return groups


def _marked(content: Rendered, slots: bool) -> tuple[str, list[Mark]]:
    """Put a character in each slot's place, and mark values and slots."""
    text: list[str] = []
    marks: list[Mark] = []
    length = 0
    for span in content.spans:
        piece = content.text[span.start : span.end]
        if span.kind == "slot":
            piece = _SLOT if slots else ""
        if span.kind != "template" and piece:
            marks.append(Mark(length, length + len(piece), span.origin or "", 0, span.kind))
        text.append(piece)
        length += len(piece)
    return "".join(text), marks


def place_marks(spans: Sequence[Mark], place: ContentSpan) -> list[Mark]:
    """Shift the marks of a content to where the chat template has put it."""
    marks = []
    for mark in spans:
        start, end = _inside(place, mark.start), _inside(place, mark.end)
        if start < end:
            marks.append(Mark(start, end, mark.origin, max(place.trimmed_left - mark.start, 0), mark.kind))
    return marks


def _inside(place: ContentSpan, at: int) -> int:
    return place.start + min(max(at - place.trimmed_left, 0), place.end - place.start)
