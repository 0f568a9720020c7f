"""Methods of texts, lists and objects for chat templates, each charged to the budget before it runs."""

from collections.abc import Callable
from typing import Any

from jinja2.exceptions import SecurityError, TemplateRuntimeError

from cachegraph.common.template_budget import MAX_ITEMS, spend, weigh

from .formatting import format_braces

__all__ = ["Method", "count_of", "find_method", "pay_replacing", "strip_set"]

MAX_STRIPPED = 1_000  # different characters that one `strip` takes away
_LINEAR = frozenset(
    {"capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha", "isascii", "isdecimal"}
    | {"isdigit", "isidentifier", "islower", "isnumeric", "isprintable", "isspace", "istitle", "isupper", "lower"}
    | {"partition", "removeprefix", "removesuffix", "rfind", "rindex", "rpartition", "startswith", "swapcase"}
    | {"title", "upper"}
)
_PADDED = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs"})
_STRIPPED = frozenset({"strip", "lstrip", "rstrip"})
_SPLIT = frozenset({"split", "rsplit"})


class Method:
    """A method bound to its value, which the sandbox may call."""

    __slots__ = ("_work",)

    def __init__(self, work: Callable[..., Any]):
        self._work = work

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._work(*args, **kwargs)


def find_method(value: Any, name: str) -> Method | None:
    """The method of this name, None where the value's kind has no such attribute.

    Raises SecurityError for one that it has and that a template may not use.
    """
    for kind, methods in _METHODS:
        if isinstance(value, kind):
            if name in methods:
                return Method(methods[name](value, name))
            if hasattr(kind, name):
                raise SecurityError(f"a chat template may not use {name!r} of {kind.__name__}")
            return None
    return None


def count_of(value: Any) -> int:
    """A whole number of a size that lists and widths may have."""
    if isinstance(value, int) and abs(value) <= MAX_ITEMS:
        return value
    raise TemplateRuntimeError(f"a whole number up to {MAX_ITEMS:,} is wanted here")


def strip_set(chars: Any) -> Any:
    """What `strip` takes away; its time grows with the number of different characters."""
    if not isinstance(chars, str):
        return chars
    spend(len(chars))
    kept = "".join(dict.fromkeys(chars))
    if len(kept) > MAX_STRIPPED:
        raise TemplateRuntimeError(f"at most {MAX_STRIPPED:,} different characters can be stripped")
    return kept


def pay_replacing(text: str, old: str, new: str, most: int | None) -> None:
    """Pay for `text.replace(old, new)` before it is done."""
    spend(len(text) // 16)
    places = text.count(old)
    places = places if most is None or most < 0 else min(places, most)
    spend(6 * (len(text) + places * max(len(new) - len(old), 0)))


def _linear(text: str, name: str) -> Callable[..., Any]:
    def work(*args: Any) -> Any:
        for arg in args:
            weigh(arg)
        spend(3 * len(text))
        return getattr(text, name)(*args)

    return work


def _padded(text: str, name: str) -> Callable[..., Any]:
    def work(width: Any = 8, *fill: Any) -> Any:
        times = text.count("\t") + 1 if name == "expandtabs" else 1
        spend(len(text) + times * max(count_of(width), 0))
        return getattr(text, name)(width, *fill)

    return work


def _stripped(text: str, name: str) -> Callable[..., Any]:
    def work(chars: Any = None) -> Any:
        chars = strip_set(chars)
        spend(len(text) * (1 + len(chars or "") // 16))
        return getattr(text, name)(chars)

    return work


def _split(text: str, name: str) -> Callable[..., Any]:
    def work(sep: Any = None, maxsplit: Any = -1) -> Any:
        most = count_of(maxsplit)
        spend(len(text))
        return _listed(getattr(text, name)(sep, most if most >= 0 else MAX_ITEMS + 1))

    return work


def _splitlines(text: str, _: str) -> Callable[..., Any]:
    def work(keepends: Any = False) -> Any:
        spend(len(text))
        if sum(map(text.count, "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029")) > MAX_ITEMS:
            raise TemplateRuntimeError(f"the text has more than {MAX_ITEMS:,} lines")
        return _listed(text.splitlines(keepends))

    return work


def _listed(parts: list[str]) -> list[str]:
    spend(50 * len(parts))
    if len(parts) > MAX_ITEMS:
        raise TemplateRuntimeError(f"the text falls into more than {MAX_ITEMS:,} parts")
    return parts


def _replace(text: str, _: str) -> Callable[..., Any]:
    def work(old: str, new: str, count: int = -1) -> Any:
        pay_replacing(text, old, new, count_of(count))
        return text.replace(old, new, count)

    return work


def _join(text: str, _: str) -> Callable[..., Any]:
    def work(items: Any) -> Any:
        items = list(items) if not isinstance(items, str) else items
        parts = weigh(items)
        spend(6 * parts.characters + len(text) * parts.items)
        return text.join(items)

    return work


def _format(text: str, _: str) -> Callable[..., Any]:
    return lambda *args, **kwargs: format_braces(text, args, kwargs)


def _get(value: dict[Any, Any], _: str) -> Callable[..., Any]:
    def work(key: Any, default: Any = None) -> Any:
        weigh(key)
        return value.get(key, default)

    return work


def _view(value: dict[Any, Any], name: str) -> Callable[..., Any]:
    def work() -> Any:
        spend(50 * len(value))
        return dict(value) if name == "copy" else list(getattr(value, name)())

    return work


def _search(value: Any, name: str) -> Callable[..., Any]:
    def work(item: Any, *bounds: Any) -> Any:
        weigh(value)
        weigh(item)
        return getattr(value, name)(item, *bounds)

    return work


_Maker = Callable[[Any, str], Callable[..., Any]]
_TEXT: dict[str, _Maker] = {
    **dict.fromkeys(_LINEAR, _linear),
    **dict.fromkeys(_PADDED, _padded),
    **dict.fromkeys(_STRIPPED, _stripped),
    **dict.fromkeys(_SPLIT, _split),
    "format": _format,
    "join": _join,
    "replace": _replace,
    "splitlines": _splitlines,
}
_OBJECT: dict[str, _Maker] = {"get": _get, **dict.fromkeys(("copy", "items", "keys", "values"), _view)}
_LIST: dict[str, _Maker] = dict.fromkeys(("count", "index"), _search)
_METHODS: tuple[tuple[type, dict[str, _Maker]], ...] = (
    *((str, _TEXT), (dict, _OBJECT), (list, _LIST), (tuple, _LIST), (range, {})),
)
