"""A message request: the fields that clients may send, and its form for a recipe."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..inputs import ChatTurn
from ..prepare import Asked, refuse_unsupported
from ..text_content import Content, text_of
from ..whole_number import Positive, Whole

__all__ = ["CountRequest", "MessageRequest", "asked_of", "turns_of"]

OWN_TOOLS = "the agents of a recipe use the tools that it declares, and none of the caller's"
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ({"type": "none"}, {"type": "auto"}),
    "thinking": ({"type": "disabled"},),
    "output_config": ({},),
    "container": (),
    "service_tier": ("auto", "standard_only"),
    "speed": ("standard",),
}


class InputMessage(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["user", "assistant"]
    content: Content


class CountRequest(BaseModel):
    """Fields of both requests: a model, and a conversation."""

    model_config = ConfigDict(extra="forbid")

    model: str
    messages: Annotated[list[InputMessage], Field(min_length=1)]
    system: Content | None = None
    cache_control: Any = None  # ignored: the prefix cache is automatic
    # Accepted only with the values in NEUTRAL.
    tools: Any = None
    tool_choice: Any = None
    thinking: Any = None
    output_config: Any = None
    speed: Any = None
    # Extensions.
    inputs: dict[str, Any] | None = None


class MessageRequest(CountRequest):
    """The body of a message request, with cachegraph's fields from `extra_body`."""

    max_tokens: Positive
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Whole | None = None
    metadata: dict[str, Any] | None = None
    container: Any = None
    service_tier: Any = None
    seed: Whole | None = None
    session: str | None = None


def turns_of(request: CountRequest) -> list[ChatTurn]:
    """Return the conversation as text, system message first. Raises ApiError for parts other than text."""
    turns = [
        ChatTurn(message.role, text_of(message.content, f"messages.{number}.content"))
        for number, message in enumerate(request.messages)
    ]
    system = text_of(request.system, "system")
    return [ChatTurn("system", system), *turns] if system else turns


def asked_of(request: MessageRequest) -> Asked:
    """Convert the request to its API-independent form. Raises ApiError."""
    refuse_unsupported(request, NEUTRAL, {"tools": OWN_TOOLS})
    return Asked(
        request.model,
        turns_of(request),
        {
            "max_new_tokens": request.max_tokens,
            **{name: getattr(request, name) for name in ("temperature", "top_p", "top_k", "seed")},
        },
        request.stop_sequences or (),
        request.inputs or {},
        session=request.session,
    )
