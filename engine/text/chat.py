"""Renders a chat by its template, with the place of every message's content in the text.

A template is a program that may trim, repeat, move or drop what it is given, and its own words may equal the user's. So
contents are not searched for: the chat is rendered a second time with marks in their place, and the text between the
marks, which is the template's own, tells where the contents of the first rendering begin and end.
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
    """A rendered chat. `contents` has one span a message; it is empty where the template dropped the content.

    `copies` are contents that the template wrote once more, and `foreign` is what else it did not write itself.
    """

    text: str
    contents: tuple[ContentSpan, ...]
    copies: tuple[tuple[int, ContentSpan], ...] = ()
    foreign: tuple[tuple[int, int], ...] = ()
    certain: bool = True  # all but these is the template's own
    frame: str = ""  # where that is not certain: what the template makes of marks in the contents' places


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
    matches = _match(text, pieces, tail, contents)
    if matches is not None:
        spans = dict(reversed(matches))
        copies = [match for match in matches if match[1] is not spans[match[0]]]
        return ChatText(text, _fill(spans, len(contents)), tuple(copies))
    start = len(pieces[0].literal) if pieces and text.startswith(pieces[0].literal) else 0
    spans = _search(text, contents, start)
    gaps = _gaps(text, pieces, tail, contents)
    frame = "".join(piece.literal for piece in pieces) + tail if gaps is None else ""
    return ChatText(text, _fill(spans, len(contents)), (), tuple(gaps or ()), gaps is not None, frame)


def _template_pieces(
    apply: Apply, messages: Sequence[Mapping[str, str]], contents: list[str], text: str
) -> tuple[list[_Piece], str]:
    mark = _unused_mark([text, *contents])
    # An empty content stays empty: templates branch on whether there is one.
    marked = [
        {**message, "content": f"{mark}{index}Z"} if content else dict(message)
        for index, (message, content) in enumerate(zip(messages, contents, strict=True))
    ]
    parts = re.split(f"{mark}(\\d+)Z", apply(marked), flags=re.IGNORECASE)
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


def _match(text: str, pieces: list[_Piece], tail: str, contents: list[str]) -> list[tuple[int, ContentSpan]] | None:
    """The span of each piece's message if the text is the pieces with contents between them, whole or trimmed.

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
    found: list[tuple[int, ContentSpan]] = []
    for steps, (_, message) in zip(reversed(trail), reversed(pieces), strict=True):
        end, span = steps[end]
        found.append((message, span))
    return found[::-1]


def _gaps(text: str, pieces: list[_Piece], tail: str, contents: list[str]) -> list[tuple[int, int]] | None:
    """What stands between the template's own words, where these can be at one place each only; else None."""
    if not pieces or not text.startswith(pieces[0].literal) or not text.endswith(tail):
        return None
    begin, end = len(pieces[0].literal), len(text) - len(tail)
    literals = [piece.literal for piece in pieces[1:] if piece.literal]
    said = "\n".join(contents).lower()
    if any(own.strip() and own.lower() in said for own in (pieces[0].literal, *literals, tail)):
        return None
    first, at = [], begin
    for literal in literals:
        at = text.find(literal, at, end)
        if at < 0:
            return None
        first.append(at)
        at += len(literal)
    stop, last = end, []
    for literal in reversed(literals):
        stop = text.rfind(literal, begin, stop)
        last.append(stop)
    if begin > end or first != last[::-1]:
        return None
    ends = [at + len(literal) for at, literal in zip(first, literals, strict=True)]
    return list(zip([begin, *ends], [*first, end], strict=True))


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
