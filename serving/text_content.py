"""Text content of messages, as a string or in parts. Rejects images and other parts, which recipes can't read."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from .errors import ApiError

__all__ = ["Content", "text_of"]


class TextPart(BaseModel):
    """A text part."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["text", "input_text", "output_text"]
    text: str


class OtherPart(BaseModel):
    """A part of another kind."""

    model_config = ConfigDict(extra="ignore")

    type: str


Content = str | list[TextPart | OtherPart]


def text_of(content: Content | None, place: str) -> str:
    """Return the text of a message. Raises ApiError for parts other than text."""
    if content is None or isinstance(content, str):
        return content or ""
    for part in content:
        if isinstance(part, OtherPart):
            words = f"{place} has a part of type {part.type!r}; recipes take text alone"
            raise ApiError(400, words, "invalid_value", place)
    return "".join(part.text for part in content if isinstance(part, TextPart))
