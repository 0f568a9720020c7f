"""jsonschema's keywords, charged to a budget: every evaluated keyword spends from one check's budget.

Replaces keywords whose cost or precision the library does not bound: patterns (backtracking), `uniqueItems`
(quadratic), `enum` and `const` (deep comparison), `multipleOf` (rounding, overflow).
"""

import json
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache, wraps
from typing import Any

from .budget import spend
from .patterns import compile_pattern

__all__ = ["MATCHES", "validator_class"]

MESSAGE = 1_000  # kept characters of an error's message

Keyword = Callable[[Any, Any, Any, Any], Any]


MATCHES: ContextVar[Callable[[str, str], bool] | None] = ContextVar("MATCHES", default=None)  # from a TextReader


@lru_cache(maxsize=16)
def validator_class(base: Any) -> Any:
    """Return the draft's validator class with charged keywords. Sub-schemas use it, whatever `$schema` they name."""
    from jsonschema import validators

    keywords = {name: _paid(keyword) for name, keyword in base.VALIDATORS.items()}
    paid = validators.extend(base, {**keywords, **{name: _paid(keyword) for name, keyword in _REPLACED.items()}})
    paid.evolve = _evolve
    return paid


def _evolve(self: Any, **changes: Any) -> Any:
    kept = {"schema": self.schema, "format_checker": self.format_checker}
    return type(self)(**{**kept, "registry": self._registry, "_resolver": self._resolver, **changes})


def _paid(keyword: Keyword) -> Keyword:
    @wraps(keyword)
    def paid(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[Any]:
        spend(1 + _size(value) + _size(instance))
        for error in keyword(validator, value, instance, schema) or ():
            spend(len(error.message) // 16)  # a message quotes the whole instance
            error.message = _shortened(error.message)
            yield error

    return paid


def _size(value: Any) -> int:
    if isinstance(value, str):
        return len(value) // 16
    return len(value) if isinstance(value, dict | list | tuple) else 0


def _shortened(message: str) -> str:
    return message if len(message) <= MESSAGE else f"{message[:MESSAGE]}..."


def _matches(source: str, text: str) -> bool:
    if (matches := MATCHES.get()) is not None:
        spend(1 + len(text) // 16)
        return matches(source, text)
    pattern = compile_pattern(source)
    spend(pattern.weight * (len(text) + 1) // 1_000)
    return pattern.search(text)


def _pattern(validator: Any, source: Any, instance: Any, _: Any) -> Iterator[Any]:
    from jsonschema import ValidationError

    if validator.is_type(instance, "string") and not _matches(source, instance):
        yield ValidationError(f"{_shortened(repr(instance))} does not match {source!r}")


def _pattern_properties(validator: Any, patterns: Any, instance: Any, _: Any) -> Iterator[Any]:
    if validator.is_type(instance, "object"):
        for source, inner in patterns.items():
            for name, value in instance.items():
                if _matches(source, name):
                    yield from validator.descend(value, inner, path=name, schema_path=source)


def _additional_properties(validator: Any, allowed: Any, instance: Any, schema: Any) -> Iterator[Any]:
    from jsonschema import ValidationError

    if not validator.is_type(instance, "object"):
        return
    known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    extras = [name for name in instance if name not in known and not any(_matches(source, name) for source in patterns)]
    if validator.is_type(allowed, "object"):
        for name in extras:
            yield from validator.descend(instance[name], allowed, path=name)
    elif not allowed and extras:
        named = ", ".join(repr(name) for name in sorted(extras)[:5])
        yield ValidationError(f"additional properties are not allowed: {named}")


def _unique_items(validator: Any, wanted: Any, instance: Any, _: Any) -> Iterator[Any]:
    from jsonschema import ValidationError

    if wanted and validator.is_type(instance, "array"):
        seen: set[str] = set()
        for item in instance:
            key = _identity(item)
            if key in seen:
                yield ValidationError(f"{_shortened(repr(item))} stands twice in a list of unique items")
                return
            seen.add(key)


def _enum(_: Any, allowed: Any, instance: Any, __: Any) -> Iterator[Any]:
    from jsonschema import ValidationError

    key = _identity(instance)
    if not any(_identity(value) == key for value in allowed):
        yield ValidationError(f"{_shortened(repr(instance))} is not one of {_shortened(repr(allowed))}")


def _const(_: Any, wanted: Any, instance: Any, __: Any) -> Iterator[Any]:
    from jsonschema import ValidationError

    if _identity(instance) != _identity(wanted):
        yield ValidationError(f"{_shortened(repr(wanted))} was expected")


def _multiple_of(_: Any, factor: Any, instance: Any, __: Any) -> Iterator[Any]:
    """Check `multipleOf` in decimal arithmetic: 0.3 is a multiple of 0.1."""
    from jsonschema import ValidationError

    if isinstance(instance, int | float) and not isinstance(instance, bool):
        spend(_digits(instance) // 16)
        if not factor or (_exact(instance) / _exact(factor)).denominator != 1:
            yield ValidationError(f"{instance!r} is not a multiple of {factor!r}")


def _digits(number: Any) -> int:
    return number.bit_length() if isinstance(number, int) else 1_000


def _exact(number: Any) -> Fraction:
    return Fraction(number) if isinstance(number, int) else Fraction(Decimal(str(number)))


def _identity(value: Any) -> str:
    """Return a key that follows JSON Schema equality: 1 equals 1.0, objects ignore order, 1 differs from true."""
    text = json.dumps(_plain(value), sort_keys=True)
    spend(len(text) // 16)
    return text


def _plain(value: Any) -> Any:
    spend(1)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return {name: _plain(item) for name, item in value.items()} if isinstance(value, dict) else value


_REPLACED: dict[str, Keyword] = {
    "additionalProperties": _additional_properties,
    "const": _const,
    "enum": _enum,
    "multipleOf": _multiple_of,
    "pattern": _pattern,
    "patternProperties": _pattern_properties,
    "uniqueItems": _unique_items,
}
