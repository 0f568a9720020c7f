"""Hides the names of control tokens in texts from a chat template, and restores them in its output.

Their places are known then: a template that moves, repeats or rewrites a text can't turn them into its own words.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from .chat import ChatText, ContentSpan

__all__ = ["Hidden", "hide"]


class Hidden(NamedTuple):
    """What was taken out: sign `<prefix>3z` stands for the fourth name."""

    prefix: str
    names: list[str]

    def show(self, chat: ChatText) -> ChatText:
        """The same chat with the names in their places, which are foreign in it."""
        if not self.names:
            return chat
        parts, foreign, ends, shifts = [], [], [0], [0]
        end = length = 0
        for match in re.finditer(f"{self.prefix}(\\d+)z", chat.text, re.IGNORECASE):
            name = self.names[int(match[1])]
            name = name.upper() if match[0].isupper() else name
            length += match.start() - end
            parts += [chat.text[end : match.start()], name]
            foreign.append((length, length + len(name)))
            length, end = length + len(name), match.end()
            ends.append(end)
            shifts.append(length - end)
        text = "".join([*parts, chat.text[end:]])

        def moved(at: int) -> int:
            return at + shifts[bisect_right(ends, at) - 1]

        def span(content: ContentSpan) -> ContentSpan:
            return ContentSpan(moved(content.start), moved(content.end), content.trimmed_left)

        return ChatText(
            text,
            tuple(span(content) for content in chat.contents),
            tuple((message, span(copy)) for message, copy in chat.copies),
            (*((moved(start), moved(stop)) for start, stop in chat.foreign), *foreign),
            chat.certain,
        )


def hide(value: Any, named_in: Callable[[str], list[str]]) -> tuple[Any, Hidden]:
    """A JSON value whose texts hold signs in place of names, as `named_in` finds them; and what they stand for."""
    texts = list(_texts(value))
    found = sorted({name for text in texts for name in named_in(text)}, key=lambda name: (-len(name), name))
    number, low = 0, "\n".join(texts).lower()
    while f"qh{number}h" in low:
        number += 1
    hidden = Hidden(f"qh{number}h", [])
    if not found:
        return value, hidden
    pattern = re.compile("|".join(map(re.escape, found)), re.IGNORECASE)

    def sign(name: re.Match[str]) -> str:
        hidden.names.append(name[0])
        return f"{hidden.prefix}{len(hidden.names) - 1}z"

    return _mapped(value, lambda text: pattern.sub(sign, text)), hidden


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_mapped(key, change): _mapped(item, change) for key, item in value.items()}
    return [_mapped(item, change) for item in value] if isinstance(value, list | tuple) else value
