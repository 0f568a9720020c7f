"""Check a run's inputs against their declarations."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cachegraph.common.did_you_mean import suggest
from cachegraph.common.json_text import JSONProblem, is_deep, parse_json
from cachegraph.common.schemas import find_mismatch
from cachegraph.errors import InputError

from .spec import InputSpec

__all__ = ["Remedy", "by_key_of_row", "by_keyword", "check_inputs", "parse_inputs", "why_not"]

Remedy = Callable[[Sequence[str]], str]  # from the names of missing inputs to what the caller should do
MAX_BITS = 13_000  # largest number converted to text: about 4,000 digits

KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "string": ((str,), "text"),
    "number": ((int, float), "a number"),
    "boolean": ((bool,), "true or false"),
    "list": ((list, tuple), "a list"),
    "object": ((Mapping,), "an object"),
}


def by_keyword(names: Sequence[str]) -> str:
    """The remedy for inputs that a Python call lacks."""
    return f"give {'it' if len(names) == 1 else 'them'} by name: run({', '.join(f'{name}=...' for name in names)})"


def by_key_of_row(names: Sequence[str]) -> str:
    """The remedy for inputs that a row of `Graph.map` lacks."""
    return f"add {'the key' if len(names) == 1 else 'the keys'} {', '.join(map(repr, names))} to the row"


def check_inputs(
    declared: Mapping[str, InputSpec],
    given: Any,
    named: Mapping[str, Any] | None = None,
    remedy: Remedy = by_keyword,
) -> dict[str, Any]:
    """Return the value of every declared input. Converts numbers to text for text inputs; fills in defaults.

    Raises InputError for any other mismatch. `remedy` ends the message about missing inputs, as they are given in many
    ways: by keyword, on the command line, in a row or in a request.
    """
    if given is not None and not isinstance(given, Mapping):
        raise InputError(f"inputs must be a mapping from names to values, not {type(given).__name__}")
    given, named = given or {}, named or {}
    problems = [f"input {name!r} is given twice, in the mapping and by name" for name in given if name in named]
    values: dict[str, Any] = {}
    for name, value in {**given, **named}.items():
        if name not in declared:
            problems.append(f"there is no input {name!r}{suggest(name, declared)}")
        elif (reason := why_not(declared[name], value)) is not None:
            problems.append(f"input {name!r} {reason}")
        else:
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            values[name] = str(value) if declared[name].kind == "string" and is_number else value
    missing = []
    for name, spec in declared.items():
        if name in values or name in given or name in named:
            continue
        if spec.is_required:
            missing.append(name)
            problems.append(f"input {name!r} is missing" + (f" ({spec.description})" if spec.description else ""))
        else:
            values[name] = spec.default
    if missing:
        problems.append(remedy(missing))
    if problems:
        raise InputError("; ".join(problems))
    return values


def why_not(spec: InputSpec, value: Any) -> str | None:
    """The reason why a value doesn't fit this input, as the end of a sentence; None if it fits."""
    if spec.kind == "string":
        fits = isinstance(value, str | int | float) and not isinstance(value, bool)
        if isinstance(value, int) and value.bit_length() > MAX_BITS:
            return "is a number of too many digits; give it as text"
        return None if fits else f"must be text or a number, not {type(value).__name__}"
    if spec.kind in KINDS:
        types, words = KINDS[spec.kind]
        if not isinstance(value, types) or (isinstance(value, bool) and spec.kind != "boolean"):
            return f"must be {words}, not {type(value).__name__}"
    try:
        json.dumps(value, allow_nan=False)
    except RecursionError:
        return "is nested too deeply; make it flatter"
    except (TypeError, ValueError):
        return "must be a JSON value: text, numbers, true, false, null, and lists and objects of those"
    if is_deep(value):
        return "is nested too deeply; make it flatter"
    return _why_not_by_schema(spec.json_schema, value) if spec.json_schema is not None else None


def _why_not_by_schema(schema: Mapping[str, Any], value: Any) -> str | None:
    wrong = find_mismatch(schema, json.loads(json.dumps(value)))
    if wrong is None:
        return None
    return f"doesn't satisfy its schema{'' if wrong.place == '$' else f' at {wrong.place}'}: {wrong.message}"


def parse_inputs(declared: Mapping[str, InputSpec], texts: Mapping[str, str]) -> dict[str, Any]:
    """Parse values from a command line: text unchanged, other types as JSON. Raises InputError."""
    values: dict[str, Any] = {}
    for name, text in texts.items():
        if name not in declared or declared[name].kind == "string":
            values[name] = text
            continue
        try:
            values[name] = parse_json(text)
        except JSONProblem as error:
            kind = declared[name].kind
            raise InputError(f"input {name!r} is of type {kind!r}, and what is given is not JSON: {error}") from error
    return values
