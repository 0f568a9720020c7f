"""What the benchmarks have models read: this repository's LICENSE, over and over, cut at a number of tokens."""

from collections.abc import Sequence
from itertools import count
from pathlib import Path

from cachegraph.engine.text.tokenizer import Tokenizer

__all__ = ["QUESTIONS", "document", "document_ids", "fresh", "fresh_text"]

QUESTIONS = ("Who may use this?", "What is a Work?", "What is granted?", "What must be kept?", "Who is liable?")
_LICENSE = Path(__file__).parents[1] / "LICENSE"
_numbers = count(1)


def document(tokenizer: Tokenizer, tokens: int) -> str:
    text, offsets = _read(tokenizer, tokens)[:2]
    return text[: offsets[tokens - 1][1]]


def document_ids(tokenizer: Tokenizer, tokens: int) -> list[int]:
    return _read(tokenizer, tokens)[2][:tokens]


def _read(tokenizer: Tokenizer, tokens: int) -> tuple[str, list[tuple[int, int]], list[int]]:
    """A text of at least so many tokens, where each of them is in it, and their ids."""
    once = text = _LICENSE.read_text(encoding="utf-8")
    while len((read := tokenizer.encode(text, special=False)).ids) < tokens:
        text += once
    return text, read.offsets, read.ids


def fresh_text(text: str) -> str:
    """The same text behind a number that no other has had: nothing of it can be known from before."""
    return f"{next(_numbers)}. {text}"


def fresh(ids: Sequence[int]) -> list[int]:
    """The same for tokens, as many as they were; the first of them changes, for 200 times."""
    return [10 + next(_numbers) % 200, *ids[1:]]
