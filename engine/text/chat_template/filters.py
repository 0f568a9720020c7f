"""Filters and tests of chat templates: Jinja2's own if linear, each charged to the budget before it runs."""

import json
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

from jinja2 import Undefined, filters, pass_environment
from jinja2.exceptions import TemplateRuntimeError
from jinja2.tests import TESTS as UNTYPED_TESTS
from jinja2.utils import _PassArg

from cachegraph.common.template_budget import MAX_ITEMS, spend, weigh

from .formatting import format_percent
from .methods import count_of, pay_replacing, strip_set

__all__ = ["FILTERS", "TESTS", "Lazy", "compare"]

JINJA_TESTS: dict[str, Any] = dict(UNTYPED_TESTS)
MAX_INDENT = 100
Work = Callable[..., Any]


class Lazy:
    """A lazy result of Jinja2 (`map`, `select`, ...): it is iterated once, is true, and has no length."""

    def __init__(self, items: list[Any]):
        self._rest = iter(items)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        spend()
        return next(self._rest)


def _values(work: Work, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of a filter without the environment or context that Jinja2 puts in front."""
    return args[1:] if _PassArg.from_obj(work) is not None else args


def _paid(work: Work, pay: Callable[..., None]) -> Work:
    @wraps(work)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        spend()
        if pay is not _one:
            args = tuple(list(arg) if isinstance(arg, Lazy) else arg for arg in args)
        pay(*_values(work, args), **kwargs)
        result = work(*args, **kwargs)
        return Lazy(_listed(result)) if isinstance(result, Iterator) else result

    return guarded


def _listed(items: Iterator[Any]) -> list[Any]:
    """What a filter makes lazily, at once: so it is paid here, and can't be held back for later."""
    made = []
    for item in items:
        spend()
        made.append(item)
        if len(made) > MAX_ITEMS:
            raise TemplateRuntimeError(f"a list has at most {MAX_ITEMS:,} items")
    return made


def _deep(*args: Any, **kwargs: Any) -> None:
    """For what writes out or compares all that a value holds, six times as long where it is escaped."""
    for value in (*args, *kwargs.values()):
        spend(6 * weigh(value).characters)


def _flat(value: Any = None, *args: Any, **kwargs: Any) -> None:
    """For what looks at the items of a list, and not into them."""
    spend(len(value) if isinstance(value, list | tuple | range | dict | str) else 0)
    _deep(*args, **kwargs)


def _one(*args: Any, **kwargs: Any) -> None:
    """For what takes the same time whatever its value is."""


def _padding(value: Any, width: Any = 80) -> None:
    _deep(value)
    spend(max(count_of(width), 0))


def _indenting(value: Any, width: Any = 4, first: Any = False, blank: Any = False) -> None:
    _deep(value)
    fill = len(width) if isinstance(width, str) else max(count_of(width), 0)
    spend((str(value).count("\n") + 2) * fill)


def _replacing(value: Any, old: Any, new: Any, count: Any = None) -> None:
    _deep(value, old, new)
    pay_replacing(str(value), str(old), str(new), None if count is None else count_of(count))


def _joining(value: Any, d: Any = "", attribute: Any = None) -> None:
    _deep(value, attribute)
    spend(weigh(d).characters * (len(value) if isinstance(value, list | tuple | dict | str | range) else 1))


def _rounding(value: Any, precision: Any = 0, method: Any = "common") -> None:
    if not isinstance(precision, int) or abs(precision) > MAX_INDENT:
        raise TemplateRuntimeError(f"round() takes at most {MAX_INDENT} digits")


def _parting(value: Any, number: Any, fill_with: Any = None) -> None:
    _flat(value)
    spend(50 * max(count_of(number), 0))


def _summing(value: Any, attribute: Any = None, start: Any = 0) -> None:
    _deep(value, attribute)
    if not isinstance(start, int | float):
        raise TemplateRuntimeError("sum() adds numbers only")


def _numbers(items: Any) -> list[Any]:
    numbers = list(items)
    if not all(isinstance(item, int | float | Undefined) for item in numbers):
        raise TemplateRuntimeError("sum() adds numbers only")
    return numbers


@pass_environment
def _sum(environment: Any, iterable: Any, attribute: Any = None, start: Any = 0) -> Any:
    if attribute is not None:
        iterable = map(filters.make_attrgetter(environment, attribute), iterable)
    return sum(_numbers(iterable), start)


@pass_environment
def _attr(environment: Any, value: Any, name: Any) -> Any:
    return environment.attribute(value, str(name))


def _trim(value: Any, chars: Any = None) -> Any:
    kept = strip_set(chars)
    spend(weigh(value).characters * (1 + len(kept or "") // 16))
    return filters.do_trim(value, kept)


def _format(value: Any, *args: Any, **kwargs: Any) -> str:
    if args and kwargs:
        raise TemplateRuntimeError("format() takes values in order or by name, not both")
    return format_percent(value if isinstance(value, str) else str(value), kwargs or args)


def _tojson(
    value: Any, ensure_ascii: Any = False, indent: Any = None, separators: Any = None, sort_keys: Any = False
) -> str:
    """As transformers has it: nothing is escaped for HTML."""
    weight = weigh(value)
    step = len(indent) if isinstance(indent, str) else indent or 0
    if not isinstance(step, int) or step > MAX_INDENT or weigh(separators).characters > MAX_INDENT:
        raise TemplateRuntimeError(f"tojson() indents and separates by at most {MAX_INDENT} characters")
    spend(weight.items * (weight.depth * max(step, 0) + MAX_INDENT * (separators is not None) + 4))
    spend(12 * weight.characters)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


_OWN: dict[str, Callable[..., None]] = {  # Jinja2's filters, by how they are paid
    **dict.fromkeys(("capitalize", "dictsort", "e", "escape", "forceescape", "groupby", "lower", "max", "min"), _deep),
    **dict.fromkeys(("float", "int", "sort", "string", "title", "truncate", "unique", "upper"), _deep),
    **dict.fromkeys(("items", "list", "map", "reject", "rejectattr", "reverse", "select", "selectattr"), _flat),
    **dict.fromkeys(("abs", "count", "d", "default", "first", "last", "length", "safe"), _one),
    "batch": _parting,
    "center": _padding,
    "indent": _indenting,
    "join": _joining,
    "replace": _replacing,
    "round": _rounding,
    "slice": _parting,
}
FILTERS: dict[str, Work] = {
    **{name: _paid(filters.FILTERS[name], pay) for name, pay in _OWN.items()},
    "attr": _paid(_attr, _one),
    "format": _format,
    "tojson": _tojson,
    "sum": _paid(_sum, _summing),
    "trim": _trim,
}


def compare(operator: str, left: Any, right: Any) -> bool:
    """Compare two values; charges the budget for the parts that are compared."""
    if operator in ("in", "notin"):
        found = _contains(right, left)
        return found if operator == "in" else not found
    _pay_comparing(left, right)
    return bool(_COMPARE[operator](left, right))


def _pay_comparing(left: Any, right: Any) -> None:
    spend()
    if isinstance(left, str) and isinstance(right, str):
        spend(min(len(left), len(right)) // 16)
    elif isinstance(left, _CONTAINERS) and isinstance(right, _CONTAINERS):
        weigh(left)
        weigh(right)


def _contains(container: Any, item: Any) -> bool:
    spend()
    container = list(container) if isinstance(container, Lazy) else container
    if isinstance(container, str):
        spend(len(container) // 4)
    elif isinstance(item, _CONTAINERS):
        weigh(item)
        weigh(container)
    elif isinstance(container, list | tuple):
        spend(len(container) * (1 + (len(item) // 16 if isinstance(item, str) else 0)))
    return item in container


def _number_test(test: Work) -> Work:
    """`even` and its like compute `value % n`, which on a text is a format."""

    def guarded(*numbers: Any) -> Any:
        spend()
        if not all(isinstance(number, int | float | Undefined) for number in numbers):
            raise TemplateRuntimeError("this test is for numbers")
        return test(*numbers)

    return guarded


_CONTAINERS = (dict, list, tuple)
_COMPARE: dict[str, Work] = {
    "eq": JINJA_TESTS["eq"],
    "ne": JINJA_TESTS["ne"],
    "gt": JINJA_TESTS["gt"],
    "gteq": JINJA_TESTS["ge"],
    "lt": JINJA_TESTS["lt"],
    "lteq": JINJA_TESTS["le"],
}
TESTS: dict[str, Work] = {
    **{name: _paid(test, _one) for name, test in JINJA_TESTS.items()},
    **{name: _paid(JINJA_TESTS[name], _deep) for name in ("lower", "upper")},
    **{name: _number_test(JINJA_TESTS[name]) for name in ("odd", "even", "divisibleby")},
    **{
        name: _paid(JINJA_TESTS[name], _pay_comparing)
        for name in ("==", "eq", "equalto", "!=", "ne", ">", "gt", "greaterthan", "ge", ">=", "<", "lt", "lessthan")
    },
    **{name: _paid(JINJA_TESTS[name], _pay_comparing) for name in ("<=", "le")},
    "in": lambda item, container: _contains(container, item),
}
