"""Replies that are data: JSON that a schema allows, or an error that says why not."""

import json
from decimal import Decimal
from functools import lru_cache
from typing import Any, Literal

from cachegraph.errors import ModelError

__all__ = ["cut_short", "parse_reply"]


def parse_reply(agent: str, text: str, schema: dict[str, Any]) -> Any:
    """The JSON value that the reply is. Raises ModelError where it is none, or none of this schema."""
    from jsonschema.exceptions import best_match

    try:
        data = json.loads(text, parse_constant=_not_json)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"the reply of agent {agent!r} is no JSON ({error}): {_excerpt(text)}") from error
    problem = best_match(_validator(json.dumps(schema)).iter_errors(data))
    if problem is not None:
        raise ModelError(
            f"the reply of agent {agent!r} does not fit its json_schema at {problem.json_path}: "
            f"{_excerpt(problem.message)}"
        )
    return data


def cut_short(agent: str, limit: int, why: Literal["stop", "length", "room"]) -> ModelError:
    """What to raise where a reply ended inside its JSON: at a stop string, at max_new_tokens, or at the model's end."""
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


def _not_json(constant: str) -> Any:
    raise ValueError(f"{constant} is no number")


@lru_cache(maxsize=64)
def _validator(schema: str) -> Any:
    from jsonschema import Draft202012Validator, validators

    exact = validators.extend(Draft202012Validator, {"multipleOf": _multiple_of})
    return exact(json.loads(schema), format_checker=Draft202012Validator.FORMAT_CHECKER)


def _multiple_of(_: Any, factor: Any, value: Any, __: Any) -> Any:
    """As it is meant, by the decimal digits: 0.3 is a multiple of 0.1."""
    from jsonschema import ValidationError

    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and Decimal(str(value)) % Decimal(str(factor)) != 0:
        yield ValidationError(f"{value!r} is not a multiple of {factor!r}")


def _excerpt(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:197]}..."
