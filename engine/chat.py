"""Chat templates, with the place of every message's content in the rendered text.

A template is a program that may trim, repeat, move or drop what it is given, and whose own words may equal the user's.
So contents are not searched for: the chat is rendered a second time with marks in their place, and the text between
the marks, which is the template's own, tells where the contents of the first rendering begin and end.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["ChatText", "ContentSpan", "render_chat"]

Apply = Callable[[list[dict[str, str]]], str]


class ContentSpan(NamedTuple):
    """Where a content is in the text: character `start + i` is the content's character `trimmed_left + i`."""

    start: int
    end: int
    trimmed_left: int = 0


@dataclass(frozen=True)
class ChatText:
    """A rendered chat. `contents` has one span a message; it is empty where the template dropped the content."""

    text: str
    contents: tuple[ContentSpan, ...]


class _Piece(NamedTuple):
    literal: str  # the template's own words before the content
    message: int


class _Step(NamedTuple):
    before: int  # where the previous content ended
    span: ContentSpan


def render_chat(apply: Apply, messages: Sequence[Mapping[str, str]]) -> ChatText:
    """Render `messages` with `apply` and find every content in the result."""
    text = apply([dict(message) for message in messages])
    contents = [message.get("content", "") for message in messages]
    pieces, tail = _template_pieces(apply, messages, contents, text)
    spans = _match(text, pieces, tail, contents)
    if spans is None:
        start = len(pieces[0].literal) if pieces and text.startswith(pieces[0].literal) else 0
        spans = _search(text, contents, start)
    return ChatText(text, _fill(spans, len(contents)))


def _template_pieces(
    apply: Apply, messages: Sequence[Mapping[str, str]], contents: list[str], text: str
) -> tuple[list[_Piece], str]:
    mark = _unused_mark([text, *contents])
    # An empty content stays empty: templates branch on whether there is one.
    marked = [
        {**message, "content": f"{mark}{index}Z"} if content else dict(message)
        for index, (message, content) in enumerate(zip(messages, contents, strict=True))
    ]
    parts = re.split(f"{mark}(\\d+)Z", apply(marked))
    return [_Piece(parts[i], int(parts[i + 1])) for i in range(0, len(parts) - 1, 2)], parts[-1]


def _unused_mark(texts: list[str]) -> str:
    number = 0
    while any(f"Qz{number}M" in text for text in texts):
        number += 1
    return f"Qz{number}M"


def _variants(content: str) -> Iterator[tuple[str, int]]:
    """The content as templates write it, each with the characters that are missing from its start."""
    seen: set[str] = set()
    for variant in (content, content.rstrip(), content.lstrip(), content.strip()):
        if variant not in seen:
            seen.add(variant)
            yield variant, content.find(variant)


def _match(text: str, pieces: list[_Piece], tail: str, contents: list[str]) -> dict[int, ContentSpan] | None:
    """Spans by message if the text is the pieces with contents between them, whole or trimmed; else None.

    How much was trimmed shows only in what follows, so every end that is possible so far is kept.
    """
    trail: list[dict[int, _Step]] = []
    ends = [0]
    for literal, message in pieces:
        steps: dict[int, _Step] = {}
        for before in ends:
            if not text.startswith(literal, before):
                continue
            start = before + len(literal)
            for variant, trimmed in _variants(contents[message]):
                if text.startswith(variant, start):
                    end = start + len(variant)
                    steps.setdefault(end, _Step(before, ContentSpan(start, end, trimmed)))
        trail.append(steps)
        ends = list(steps)
    end = len(text) - len(tail)
    if end not in ends or not text.endswith(tail):
        return None
    spans: dict[int, ContentSpan] = {}
    for steps, (_, message) in zip(reversed(trail), reversed(pieces), strict=True):
        end, spans[message] = steps[end]
    return spans


def _search(text: str, contents: list[str], start: int) -> dict[int, ContentSpan]:
    """One after the other from `start`, for templates that treat marks and contents differently."""
    spans: dict[int, ContentSpan] = {}
    for message, content in enumerate(contents):
        for variant, trimmed in _variants(content):
            found = text.find(variant, start) if variant else -1
            if found >= 0:
                start = found + len(variant)
                spans[message] = ContentSpan(found, start, trimmed)
                break
    return spans


def _fill(spans: dict[int, ContentSpan], count: int) -> tuple[ContentSpan, ...]:
    filled: list[ContentSpan] = []
    end = 0
    for message in range(count):
        span = spans.get(message, ContentSpan(end, end))
        filled.append(span)
        end = span.end
    return tuple(filled)
