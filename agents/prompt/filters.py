"""The filters and methods of templates, each linear in its input and charged to the render's budget.

They take and return only texts, numbers and flat lists, so no result can grow faster than its charge.
"""

import json
from collections.abc import Callable
from typing import Any

from jinja2 import Undefined
from jinja2.exceptions import TemplateRuntimeError
from jinja2.filters import do_indent
from jinja2.runtime import LoopContext

from cachegraph.common.jinja_guards import bounded_range
from cachegraph.common.template_budget import BUDGET, MAX_ITEMS, Budget, spend

__all__ = [
    "BUDGET",
    "FILTERS",
    "METHODS",
    "Budget",
    "Made",
    "Value",
    "bulk",
    "count_of",
    "kind_of",
    "number_of",
    "range_of",
    "spend",
    "text_of",
]

MAX_NUMBER = 2**63
MAX_STRIPPED = 1_000  # different characters that one trim removes


class Value(str):
    """A text with the name it comes from, and the structured data that came with it."""

    __slots__ = ("data", "origin")
    origin: str
    data: Any  # a JSON value

    def __new__(cls, text: str, origin: str, data: Any = None) -> "Value":
        value = super().__new__(cls, text)
        value.origin = origin
        value.data = data
        return value

    def __str__(self) -> str:  # compiled templates call str() on their output, which must keep the origin
        return self

    def __reduce__(self) -> "tuple[type[Value], tuple[str, str, Any]]":  # a turn may be taken in another process
        return Value, (str.__str__(self), self.origin, self.data)


class Made(str):
    """The output of an expression that is neither a name's whole value nor template text."""

    __slots__ = ()

    def __str__(self) -> str:  # as above
        return self


KINDS: dict[str, type | tuple[type, ...]] = {
    "a text": str,
    "a truth value": bool,
    "a number": (int, float),
    "a list": (list, tuple, range),
    "an object": dict,
    "'loop'": LoopContext,
}


def kind_of(value: Any) -> str:
    """Describe the type of a value in words."""
    if value is None:
        return "nothing"
    return next((name for name, kind in KINDS.items() if isinstance(value, kind)), "this")


def text_of(value: Any) -> str:
    if isinstance(value, Undefined):
        value._fail_with_undefined_error()
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, bool | int | float):
        return str(value)
    remedy = "name a field of it, or write 'tojson'" if isinstance(value, dict) else "put a list together with 'join'"
    raise TemplateRuntimeError(f"text is wanted here, not {kind_of(value)}; {remedy}")


def number_of(value: Any) -> int | float:
    if isinstance(value, int | float) and abs(value) <= MAX_NUMBER:
        return value
    raise TemplateRuntimeError("a number of a sensible size is wanted here")


def count_of(value: Any) -> int:
    number = number_of(value)
    if isinstance(number, int) and abs(number) <= MAX_ITEMS:
        return number
    raise TemplateRuntimeError(f"a whole number up to {MAX_ITEMS:,} is wanted here")


def bulk(value: Any) -> int:
    """The size of a value to compare or copy: its characters, plus a constant per item."""
    size, todo = 0, [value]
    while todo:
        item = todo.pop()
        if isinstance(item, str):
            size += len(item)
        elif isinstance(item, dict | list | tuple):
            size += 16 * len(item)
            todo += [*item, *item.values()] if isinstance(item, dict) else item
    return size


def _paid_items(value: Any) -> list[Any]:
    """The items of a list, charged for comparing or hashing each of them."""
    items = _items(value)
    spend(bulk(items))
    return items


def _items(value: Any) -> list[Any]:
    if isinstance(value, str) or not isinstance(value, list | tuple | range):
        raise TemplateRuntimeError("a list is wanted here; split the text first, for example with splitlines()")
    spend(len(value))
    return list(value)


def _made(text: str) -> str:
    spend(len(text))
    return text


def _trim(value: Any, chars: Any = None, side: Callable[..., str] = str.strip) -> str:
    text = text_of(value)
    if chars is not None:
        chars = "".join(dict.fromkeys(_made(text_of(chars))))
        if len(chars) > MAX_STRIPPED:
            raise TemplateRuntimeError(f"at most {MAX_STRIPPED:,} different characters can be stripped")
    spend(len(text) * (1 + len(chars or "") // 16))
    kept = _made(side(text, chars))
    return Value(kept, text.origin) if isinstance(text, Value) else kept


def _replace(value: Any, old: Any, new: Any, count: Any = None) -> str:
    text, old, new = text_of(value), text_of(old), text_of(new)
    places = text.count(old) if count is None else min(text.count(old), count_of(count))
    spend(len(text) + places * max(len(new) - len(old), 0))
    return text.replace(old, new, places)


def _join(value: Any, between: Any = "") -> str:
    texts, glue = [text_of(item) for item in _items(value)], text_of(between)
    spend(sum(map(len, texts)) + len(glue) * len(texts))
    return glue.join(texts)


def _listed(parts: list[str]) -> list[str]:
    spend(sum(map(len, parts)) + 50 * len(parts))
    if len(parts) > MAX_ITEMS:
        raise TemplateRuntimeError(f"the text falls into more than {MAX_ITEMS:,} parts")
    return parts


def _split(value: Any, separator: Any = None, most: Any = -1) -> list[str]:
    most = count_of(most)
    return _listed(text_of(value).split(separator, most if most >= 0 else MAX_ITEMS + 1))


def _splitlines(value: Any) -> list[str]:
    text = text_of(value)
    if sum(map(text.count, "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029")) > 2 * MAX_ITEMS:
        raise TemplateRuntimeError(f"the text has more than {MAX_ITEMS:,} lines")
    return _listed(text.splitlines())


def _indent(value: Any, width: Any = 4, first: bool = False, blank: bool = False) -> str:
    text, fill = text_of(value), width if isinstance(width, str) else " " * count_of(width)
    spend(len(text) + (text.count("\n") + 1) * len(fill))
    return do_indent(str.__str__(text), fill, first, blank)


def _truncate(value: Any, length: Any = 255, killwords: bool = False, end: str = "...", leeway: int = 5) -> str:
    text, end = text_of(value), text_of(end)
    length = max(count_of(length), len(end))
    if len(text) <= length + count_of(leeway):
        return text
    kept = text[: length - len(end)]
    return (kept if killwords else kept.rsplit(" ", 1)[0]) + end


def _default(value: Any, default: Any = "", boolean: bool = False) -> Any:
    return default if isinstance(value, Undefined) or (boolean and not value) else value


def _length(value: Any) -> int:
    return len(value) if isinstance(value, list | tuple | range | dict) else len(text_of(value))


def _unique(value: Any) -> list[Any]:
    return list(dict.fromkeys(_paid_items(value)))


def _sort(value: Any, reverse: bool = False) -> list[Any]:
    return sorted(_paid_items(value), key=lambda item: text_of(item).lower(), reverse=bool(reverse))


def _reverse(value: Any) -> Any:
    return _made(value[::-1]) if isinstance(value, str) else _items(value)[::-1]


def _int(value: Any, default: int = 0) -> int:
    try:
        return int(number_of(int(value)))
    except (ValueError, OverflowError):
        return default


def _float(value: Any, default: float = 0.0) -> float:
    try:
        return float(value)
    except (ValueError, OverflowError):
        return default


def _round(value: Any, precision: Any = 0) -> float:
    return round(float(number_of(value)), count_of(precision))


def range_of(*bounds: Any) -> range:
    return bounded_range(count_of, *bounds)


def _tojson(value: Any) -> str:
    if not isinstance(value, dict | list | tuple | bool | int | float | None):
        value = text_of(value)
    return _made(json.dumps(value, ensure_ascii=False))


def _text_method(method: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(value: Any, *args: Any) -> Any:
        text = text_of(value)
        spend(len(text))
        return method(text, *args)

    return guarded


FILTERS: dict[str, Callable[..., Any]] = {
    "abs": lambda value: abs(number_of(value)),
    "capitalize": _text_method(str.capitalize),
    "count": _length,
    "d": _default,
    "default": _default,
    "first": lambda value: _items(value)[0],
    "float": _float,
    "indent": _indent,
    "int": _int,
    "join": _join,
    "last": lambda value: _items(value)[-1],
    "length": _length,
    "lower": _text_method(str.lower),
    "replace": _replace,
    "reverse": _reverse,
    "round": _round,
    "sort": _sort,
    "string": text_of,
    "title": _text_method(str.title),
    "tojson": _tojson,
    "trim": _trim,
    "truncate": _truncate,
    "unique": _unique,
    "upper": _text_method(str.upper),
}

METHODS: dict[str, Callable[..., Any]] = {
    "capitalize": _text_method(str.capitalize),
    "count": _text_method(str.count),
    "endswith": _text_method(str.endswith),
    "find": _text_method(str.find),
    "isdigit": _text_method(str.isdigit),
    "lower": _text_method(str.lower),
    "lstrip": lambda text, chars=None: _trim(text, chars, str.lstrip),
    "removeprefix": _text_method(str.removeprefix),
    "removesuffix": _text_method(str.removesuffix),
    "replace": _replace,
    "rstrip": lambda text, chars=None: _trim(text, chars, str.rstrip),
    "split": _split,
    "splitlines": _splitlines,
    "startswith": _text_method(str.startswith),
    "strip": _trim,
    "title": _text_method(str.title),
    "upper": _text_method(str.upper),
}
