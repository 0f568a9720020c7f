"""A response request: the fields that clients may send, and its form for a recipe."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..errors import ApiError
from ..inputs import ChatTurn
from ..prepare import Asked, refuse_unsupported
from ..text_content import Content, text_of
from ..whole_number import Positive, Whole
from .chat_request import OWN_TOOLS

__all__ = ["ResponseRequest", "asked_of"]

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "max_tool_calls": (),
    "reasoning": ({},),
    "include": ([],),
    "background": (False,),
    "conversation": (),
    "prompt": (),
    "truncation": ("disabled",),
    "top_logprobs": (0,),
    "service_tier": ("auto", "default"),
}


class InputItem(BaseModel):
    """A message. Rejects other items, such as tool calls."""

    model_config = ConfigDict(extra="ignore")

    type: str = "message"
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: Content | None = None


class TextFormat(BaseModel):
    """Format of the text."""

    model_config = ConfigDict(extra="ignore", populate_by_name=True)

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: Annotated[dict[str, Any] | None, Field(alias="schema")] = None


class TextConfig(BaseModel):
    """Text options."""

    model_config = ConfigDict(extra="forbid")

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class ResponseRequest(BaseModel):
    """The body of a response request, with cachegraph's fields from `extra_body`."""

    model_config = ConfigDict(extra="forbid")

    model: str
    input: str | list[InputItem] = ""
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    max_output_tokens: Positive | None = None
    temperature: float | None = None
    top_p: float | None = None
    text: TextConfig | None = None
    # Labels without effect on replies.
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    metadata: dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    # Accepted only with the values in NEUTRAL.
    tools: Any = None
    tool_choice: Any = None
    max_tool_calls: Any = None
    reasoning: Any = None
    include: Any = None
    background: Any = None
    conversation: Any = None
    prompt: Any = None
    truncation: Any = None
    top_logprobs: Any = None
    service_tier: Any = None
    # Extensions.
    inputs: dict[str, Any] | None = None
    seed: Whole | None = None


def asked_of(request: ResponseRequest, session: str | None) -> Asked:
    """Convert the request to its API-independent form. Raises ApiError."""
    refuse_unsupported(request, NEUTRAL, {"tools": OWN_TOOLS})
    return Asked(
        request.model,
        _turns(request),
        {
            "max_new_tokens": request.max_output_tokens,
            "json_schema": _schema(request.text.format if request.text is not None else None),
            **{name: getattr(request, name) for name in ("temperature", "top_p", "seed")},
        },
        inputs=request.inputs or {},
        session=session,
    )


def _turns(request: ResponseRequest) -> list[ChatTurn]:
    turns = [ChatTurn("system", request.instructions)] if request.instructions else []
    if isinstance(request.input, str):
        return [*turns, ChatTurn("user", request.input)] if request.input else turns
    for number, item in enumerate(request.input):
        if item.type != "message" or item.role is None:
            words = f"input.{number} is of type {item.type!r}; recipes take messages alone"
            raise ApiError(400, words, "invalid_value", f"input.{number}")
        turns.append(ChatTurn(item.role, text_of(item.content, f"input.{number}.content")))
    return turns


def _schema(wanted: TextFormat | None) -> dict[str, Any] | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return {"type": "object"}
    if wanted.json_schema is None:
        raise ApiError(400, "text.format has no `schema`", "invalid_value", "text.format")
    return wanted.json_schema
