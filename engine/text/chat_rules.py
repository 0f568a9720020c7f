"""Finds out by trial what a chat template takes: a system message, two messages of one role, earlier turns.

Some templates refuse what they don't know, and some drop it silently; either way it has to reach the model otherwise.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from cachegraph.errors import ModelError

__all__ = ["ChatRules", "as_parts", "find_rules"]

Messages = list[dict[str, Any]]
_WORDS = ("qzalpha", "qzbravo", "qzdelta")


class ChatRules(NamedTuple):
    """What reaches the model through its chat template."""

    system: bool = True  # a system message
    neighbours: bool = True  # two messages of one role in a row
    history: bool = True  # turns before the last
    parts: bool = False  # contents are lists of parts, not texts


def find_rules(apply: Callable[[Messages], str]) -> ChatRules:
    """Try a template. Raises ModelError where it shows no user message at all."""
    parts = False
    reason = _why_not(apply, ["user"], parts)
    if reason is not None:
        parts = True
        if _why_not(apply, ["user"], parts) is not None:
            raise ModelError(f"{reason}; give the model another `chat_template`, or write `chat: false`")
    return ChatRules(
        system=_why_not(apply, ["system", "user"], parts) is None,
        neighbours=_why_not(apply, ["user", "user"], parts) is None,
        history=_why_not(apply, ["user", "assistant", "user"], parts) is None,
        parts=parts,
    )


def as_parts(messages: Sequence[dict[str, Any]]) -> Messages:
    """The messages with contents as lists of parts."""
    return [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]


def _why_not(apply: Callable[[Messages], str], roles: Sequence[str], parts: bool) -> str | None:
    """Why messages of these roles don't all reach the model; None where they do."""
    words = _WORDS[: len(roles)]
    messages: Messages = [{"role": role, "content": word} for role, word in zip(roles, words, strict=True)]
    try:
        text = apply(as_parts(messages) if parts else messages).lower()
    except ModelError as error:
        return str(error)
    return None if all(word in text for word in words) else "the model's chat template leaves the content out"
