"""Structured replies: parse JSON and check it against a schema, or raise an error that states the problem."""

from typing import Any, Literal

from cachegraph.common.json_text import JSONProblem, parse_json
from cachegraph.common.schemas import find_mismatch
from cachegraph.engine.sampling import text_formats
from cachegraph.errors import ModelError

__all__ = ["cut_short", "parse_reply"]


def parse_reply(agent: str, text: str, schema: dict[str, Any]) -> Any:
    """Parse the reply as a JSON value. Raises ModelError if it is not JSON or violates the schema."""
    try:
        data = parse_json(text, strict=True)
    except JSONProblem as error:
        raise ModelError(f"the reply of agent {agent!r} is not JSON ({error}): {_excerpt(text)}") from error
    wrong = find_mismatch(schema, data, reader=text_formats)
    if wrong is not None:
        raise ModelError(
            f"the reply of agent {agent!r} does not fit its json_schema at {wrong.place}: {_excerpt(wrong.message)}"
        )
    return data


def cut_short(agent: str, limit: int, why: Literal["stop", "length", "room"]) -> ModelError:
    """Create the error for a reply cut short inside its JSON: by a stop string, max_new_tokens, or the context."""
    if why == "stop":
        return ModelError(
            f"a stop string of agent {agent!r} ended its reply before the JSON was whole; take it out of `stop`"
        )
    remedy = (
        "raise max_new_tokens (and limits.max_tokens, if the run has it)"
        if why == "length"
        else "shorten its prompt, since the model reads no more"
    )
    return ModelError(
        f"the reply of agent {agent!r} was cut off after {limit} tokens, before its JSON was whole; {remedy}, or bound "
        "the schema's texts and lists (maxLength, maxItems)"
    )


def _excerpt(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:197]}..."
