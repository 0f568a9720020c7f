"""A chat request: the fields that clients may send, and its form for a recipe. Rejects unsupported fields."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..errors import ApiError
from ..inputs import ChatTurn
from ..prepare import Asked, refuse_unsupported
from ..text_content import Content, text_of
from ..whole_number import Positive, Whole

__all__ = ["OWN_TOOLS", "ChatMessage", "ChatRequest", "ResponseFormat", "asked_of", "schema_of", "turns_of"]

# Unsupported API fields, with the values that change nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0, 0.0),
    "frequency_penalty": (0, 0.0),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
    "store": (False,),
    "service_tier": ("auto", "default"),
}
OWN_TOOLS = "the agents of a recipe use the tools that it declares, and none of the caller's"
REASONS = {"tools": OWN_TOOLS, "functions": OWN_TOOLS}


class ChatMessage(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="ignore")  # clients send assistant messages back with all their fields

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content | None = None


class StreamOptions(BaseModel):
    """Streaming options of a response."""

    model_config = ConfigDict(extra="ignore")

    include_usage: bool | None = None


class JSONSchemaFormat(BaseModel):
    """The schema of a reply."""

    model_config = ConfigDict(extra="ignore", populate_by_name=True)

    name: str | None = None
    json_schema: Annotated[dict[str, Any] | None, Field(alias="schema")] = None


class ResponseFormat(BaseModel):
    """Format of a reply."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JSONSchemaFormat | None = None


class ChatRequest(BaseModel):
    """The body of a chat request, with cachegraph's fields from `extra_body`."""

    model_config = ConfigDict(extra="forbid")

    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Positive | None = None
    stop: str | list[str] | None = None
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: Whole | None = None
    response_format: ResponseFormat | None = None
    # Labels without effect on replies.
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    metadata: dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    # Accepted only with the values in NEUTRAL.
    presence_penalty: Any = None
    frequency_penalty: Any = None
    logit_bias: Any = None
    logprobs: Any = None
    top_logprobs: Any = None
    tools: Any = None
    functions: Any = None
    tool_choice: Any = None
    function_call: Any = None
    modalities: Any = None
    audio: Any = None
    prediction: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None
    web_search_options: Any = None
    store: Any = None
    service_tier: Any = None
    # Extensions.
    inputs: dict[str, Any] | None = None
    session: str | None = None
    top_k: Whole | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    @model_validator(mode="after")
    def _one_limit(self) -> "ChatRequest":
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens are two names of one limit; give one of them")
        return self


def turns_of(messages: list[ChatMessage]) -> list[ChatTurn]:
    """Convert the messages to text. Raises ApiError for parts other than text."""
    return [
        ChatTurn(message.role, text_of(message.content, f"messages.{number}.content"))
        for number, message in enumerate(messages)
    ]


def asked_of(request: ChatRequest) -> Asked:
    """Convert the request to its API-independent form. Raises ApiError."""
    refuse_unsupported(request, NEUTRAL, REASONS)
    most = request.max_completion_tokens if request.max_completion_tokens is not None else request.max_tokens
    named = ("temperature", "top_p", "seed", "top_k", "min_p", "repetition_penalty")
    return Asked(
        request.model,
        turns_of(request.messages),
        {
            "max_new_tokens": most,
            "json_schema": schema_of(request.response_format),
            **{name: getattr(request, name) for name in named},
        },
        [request.stop] if isinstance(request.stop, str) else request.stop or (),
        request.inputs or {},
        request.n or 1,
        request.session,
    )


def schema_of(wanted: ResponseFormat | None) -> dict[str, Any] | None:
    """Return the JSON Schema of the reply, if any. Raises ApiError (400) for a `json_schema` without a schema."""
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return {"type": "object"}
    if wanted.json_schema is None or wanted.json_schema.json_schema is None:
        raise ApiError(400, "response_format.json_schema has no `schema`", "invalid_value", "response_format")
    return wanted.json_schema.json_schema
