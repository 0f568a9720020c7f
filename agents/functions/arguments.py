"""Match a function's parameters with inputs and replies."""

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any, get_type_hints

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from cachegraph.errors import InputError, RecipeError

from .import_function import Function

__all__ = ["arguments_of", "fit"]


def arguments_of(function: Function, agent: str, known: Sequence[str]) -> dict[str, TypeAdapter[Any]]:
    """The validator of each argument. Raises RecipeError for a parameter that nothing fills."""
    adapters: dict[str, TypeAdapter[Any]] = {}
    hints = _hints(function, agent)
    for parameter in inspect.signature(function).parameters.values():
        name = parameter.name
        match parameter.kind:
            case inspect.Parameter.VAR_KEYWORD:
                adapters |= {other: TypeAdapter(Any) for other in known if other not in adapters}
            case inspect.Parameter.POSITIONAL_ONLY | inspect.Parameter.VAR_POSITIONAL:
                raise RecipeError(
                    f"the function of agent {agent!r} takes {name!r} by position only; let it take {name!r} by name"
                )
            case _ if name in known:
                adapters[name] = _adapter(hints.get(name, Any), name, agent)
            case _ if parameter.default is inspect.Parameter.empty:
                names = ", ".join(map(repr, known)) or "none"
                raise RecipeError(
                    f"the function of agent {agent!r} takes {name!r}, which is neither an input nor an agent with an "
                    f"edge to it; there is {names}"
                )
    return adapters


def fit(path: str, argument: str, adapter: TypeAdapter[Any], candidates: Sequence[Any]) -> Any:
    """Return the first candidate that matches the annotation; a text may also be parsed as JSON. Raises InputError."""
    misfits: list[ValidationError] = []
    for value in candidates:
        try:
            return adapter.validate_python(value)
        except ValidationError as error:
            misfits.append(error)
    try:
        if isinstance(candidates[-1], str):
            return adapter.validate_json(candidates[-1])
    except ValidationError as error:
        if error.errors()[0]["type"] != "json_invalid":
            misfits.insert(0, error)
    first = misfits[0].errors(include_url=False)[0]
    place = ".".join([argument, *map(str, first["loc"])])
    message = f"{first['msg'][:1].lower()}{first['msg'][1:]}"
    raise InputError(f"{place!r} is not what the function {path!r} takes: {message}") from misfits[0]


def _hints(function: Function, agent: str) -> dict[str, Any]:
    target = function.func if isinstance(function, partial) else function
    target = target if inspect.isroutine(target) else type(target).__call__
    try:
        return get_type_hints(target, include_extras=True)
    except Exception as error:  # annotations are user code
        raise RecipeError(f"the types of the function of agent {agent!r} can't be read: {error}") from error


def _adapter(hint: Any, name: str, agent: str) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(hint)
    except PydanticUserError as error:
        raise RecipeError(
            f"the function of agent {agent!r} takes {name!r} as {hint!r}, which pydantic can't check: {error.message}"
        ) from error
