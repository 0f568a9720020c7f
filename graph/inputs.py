"""What the caller gives to a run, checked against what the recipe declares; all complaints at once."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from cachegraph.errors import InputError

from .spec import InputSpec

__all__ = ["check_inputs", "meant"]


def check_inputs(
    declared: Mapping[str, InputSpec], given: Any, named: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """The value of every declared input. Numbers become text, defaults fill in; the rest raises InputError."""
    if given is not None and not isinstance(given, Mapping):
        raise InputError(f"inputs must be a mapping from names to values, not {type(given).__name__}")
    given, named = given or {}, named or {}
    problems = [f"input {name!r} is given twice, in the mapping and by name" for name in given if name in named]
    values: dict[str, str] = {}
    for name, value in {**given, **named}.items():
        if name not in declared:
            problems.append(f"there is no input {name!r}{meant(name, declared)}")
        elif isinstance(value, str):
            values[name] = value
        elif isinstance(value, int | float) and not isinstance(value, bool):
            values[name] = str(value)
        else:
            problems.append(f"input {name!r} must be text or a number, not {type(value).__name__}")
    for name, spec in declared.items():
        if name in values or name in given or name in named:
            continue
        if spec.default is None:
            problems.append(f"input {name!r} is missing" + (f" ({spec.description})" if spec.description else ""))
        else:
            values[name] = spec.default
    if problems:
        raise InputError("; ".join(problems))
    return values


def meant(name: object, known: Iterable[str]) -> str:
    """The end of a sentence that says that a name is unknown: what was probably meant, or what there is."""
    names = list(known)
    close = get_close_matches(str(name), names, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    shown = ", ".join(repr(each) for each in names[:10]) + (", ..." if len(names) > 10 else "")
    return f"; there is {shown}" if names else "; there are none"
