"""The environment of chat templates: what transformers gives them, within bounds of time and memory.

Differences from transformers: other templates can't be included, rare filters that are not linear (`wordwrap`,
`urlize`, `pprint`, `random` and the like) are unknown, and templates may call only functions of a known list.
"""

import operator
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from types import MethodType
from typing import Any

from jinja2 import Undefined, nodes, pass_context
from jinja2.exceptions import SecurityError, TemplateError, TemplateRuntimeError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, Namespace

from cachegraph.common.jinja_guards import TokenLimit, bounded_range
from cachegraph.common.template_budget import spend, weigh

from .filters import FILTERS, TESTS, Lazy, compare
from .formatting import format_percent
from .methods import Method, count_of, find_method

__all__ = ["SANDBOX"]

MAX_NUMBER = 2**63
BOOKKEEPING = ("_loop_vars", "_block_vars")  # compiled code hands these to every call
LOOP = frozenset(
    {"changed", "cycle", "depth", "depth0", "first", "index", "index0", "last", "length", "nextitem", "previtem"}
    | {"revindex", "revindex0"}
)
HELPERS = frozenset({"current", "next", "reset"})  # of cycler()


class ChatNamespace(Namespace):
    """As transformers has it: no attribute begins with an underscore."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a chat template can't keep {name!r} in a namespace")
        super().__setitem__(name, value)


def _namespace(*args: Any, **kwargs: Any) -> ChatNamespace:
    made = ChatNamespace()
    for name, value in dict(*args, **kwargs).items():
        made[name] = value
    return made


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    for pairs in args:
        weigh(pairs)
    return dict(*args, **kwargs)


def _range(*bounds: Any) -> range:
    return bounded_range(count_of, *bounds)


def _raise_exception(message: Any) -> None:
    raise TemplateError(str(message)[:1000])


def _strftime_now(form: Any) -> str:
    if not isinstance(form, str) or len(form) > 1000:
        raise TemplateRuntimeError("strftime_now() takes a format of at most 1,000 characters")
    spend(256 * len(form))
    return datetime.now().astimezone().replace(tzinfo=None).strftime(form)


@pass_context
def _finalize(_context: Any, value: Any) -> str:
    text = value if isinstance(value, str) else _text(value)
    spend(len(text))
    return text


def _text(value: Any) -> str:
    """`str(value)`, paid first: a list may be far larger when it is written out."""
    if not isinstance(value, str | Undefined):
        spend(6 * weigh(value).characters)
    return str(value)


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])

    def __init__(self) -> None:
        # Unoptimized: the optimizer would compute constants while compiling, before any budget is there.
        super().__init__(
            optimized=False,
            finalize=_finalize,
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_TokenLimit, _Generation, LoopControlExtension],
        )
        self.filters = dict(FILTERS)
        self.tests = dict(TESTS)
        self._functions: dict[str, Callable[..., Any]] = {
            "cycler": Cycler,
            "dict": _make_dict,
            "joiner": Joiner,
            "namespace": _namespace,
            "range": _range,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }
        self.globals = {name: Method(function) for name, function in self._functions.items()}

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        given = {key: value for key, value in kwargs.items() if key not in BOOKKEEPING}
        if isinstance(function, MethodType) and function.__self__ is self:
            return function(*args, **given)
        if isinstance(function, Undefined):
            function._fail_with_undefined_error()
        spend(len(args))
        if isinstance(function, LoopContext):
            return function(self.each(args[0]) if args else ())
        if isinstance(function, Method | Macro | Joiner):
            return function(*args, **given)
        raise SecurityError("a chat template can call its macros, known functions, and methods of texts and objects")

    def call_binop(self, context: Any, operation: str, left: Any, right: Any) -> Any:
        spend()
        if isinstance(left, Undefined) or isinstance(right, Undefined):
            return self.binop_table[operation](left, right)  # which says what is undefined
        if operation == "%" and isinstance(left, str):
            return format_percent(left, right)
        if operation == "+" and isinstance(left, str | list | tuple):
            if isinstance(right, str | list | tuple):
                spend(6 * (len(left) + len(right)) if isinstance(left, str) else 8 * (len(left) + len(right)))
            return operator.add(left, right)
        if operation == "*" and (isinstance(left, str | list | tuple) or isinstance(right, str | list | tuple)):
            return self._repeated(left, right)
        if operation == "**" and abs(_number(right)) > 63:
            raise TemplateRuntimeError("that power is too large")
        return _number(self.binop_table[operation](_number(left), _number(right)))

    def _repeated(self, left: Any, right: Any) -> Any:
        sequence, times = (right, left) if isinstance(left, int) else (left, right)
        if not isinstance(times, int):
            raise TemplateRuntimeError("a text or list is repeated a whole number of times")
        spend(len(sequence) * max(count_of(times), 0) * (1 if isinstance(sequence, str) else 8))
        return sequence * times

    def getattr(self, obj: Any, attribute: str) -> Any:
        found = self.attribute(obj, attribute)
        if isinstance(found, Undefined) and isinstance(obj, dict) and attribute in obj:
            return obj[attribute]
        return found

    def attribute(self, obj: Any, name: str) -> Any:
        """An attribute that isn't an item, or undefined. Raises SecurityError for what a template may not reach."""
        if isinstance(obj, Undefined):
            obj._fail_with_undefined_error()
        if isinstance(obj, LoopContext) and name in ("changed", "cycle"):
            work = getattr(obj, name)
            return Method(lambda *args: (weigh(args), work(*args))[1])
        known = (isinstance(obj, LoopContext) and name in LOOP) or (isinstance(obj, Cycler) and name in HELPERS)
        if known or (isinstance(obj, Macro) and name in ("name", "arguments")):
            value = getattr(obj, name)
            return Method(value) if callable(value) else value
        if name in getattr(type(obj), "_fields", ()):  # what groupby() gives
            return getattr(obj, name)
        if isinstance(obj, Namespace) and not name.startswith("_"):
            try:
                return getattr(obj, name)
            except AttributeError:
                return self.undefined(obj=obj, name=name)
        method = find_method(obj, name)
        return self.undefined(obj=obj, name=name) if method is None else method

    def getitem(self, obj: Any, argument: Any) -> Any:
        spend()
        if isinstance(obj, Undefined):
            obj._fail_with_undefined_error()
        weigh(argument)
        try:
            if isinstance(obj, dict | list | tuple | str | range):
                return obj[argument]
        except (LookupError, TypeError):
            pass
        if isinstance(argument, str):
            return self.attribute(obj, argument)
        return self.undefined(obj=obj, name=argument)

    # What `Guards` makes a template call

    def each(self, iterable: Any) -> Iterable[Any]:
        """The items of a loop, a step each; a list stays a list, whose length `loop` knows."""
        if isinstance(iterable, list | tuple | range | str | dict):
            return _Steps(iterable)
        if isinstance(iterable, Lazy):
            return iterable
        if isinstance(iterable, Undefined):
            return ()
        raise TemplateRuntimeError(f"'{type(iterable).__name__}' can't be looped over")

    def compare(self, operation: str, left: Any, right: Any) -> bool:
        return compare(operation, left, right)

    def weighed(self, value: Any) -> Any:
        weigh(value)
        return value

    def join_texts(self, *parts: Any) -> str:
        texts = [str(_text(part)) for part in parts]
        spend(sum(map(len, texts)))
        return "".join(texts)

    def make_list(self, *items: Any) -> list[Any]:
        spend(8 * len(items))
        return list(items)

    def make_tuple(self, *items: Any) -> tuple[Any, ...]:
        spend(8 * len(items))
        return items

    def make_dict(self, *parts: Any) -> dict[Any, Any]:
        for key in parts[::2]:
            weigh(key)
        return dict(zip(parts[::2], parts[1::2], strict=True))

    def slice(self, obj: Any, *bounds: Any) -> Any:
        if isinstance(obj, Undefined):
            obj._fail_with_undefined_error()
        if not isinstance(obj, str | list | tuple | range):
            raise TypeError(f"{type(obj).__name__} can't be sliced")
        part = obj[slice(*(None if bound is None else int(_number(bound)) for bound in bounds))]
        spend(len(part) * (1 if isinstance(part, str) else 8))
        return part

    def generation(self, caller: Macro) -> str:
        """The body of a `{% generation %}` block, which marks what an assistant wrote."""
        return caller()


class _Steps:
    """Something to loop over that pays for every item."""

    def __init__(self, items: Any):
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Any]:
        for item in self._items:
            spend()
            yield item


def _number(value: Any) -> Any:
    if isinstance(value, int | float) and abs(value) <= MAX_NUMBER:
        return value
    raise TemplateRuntimeError(f"a number of a sensible size is wanted here, not {type(value).__name__}")


class _TokenLimit(TokenLimit):
    kind = "chat template"


class _Generation(Extension):
    """`{% generation %}`: transformers tracks there which tokens an assistant wrote; here it is its body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = nodes.Call(nodes.EnvironmentAttribute("generation"), [], [], None, None)
        return nodes.CallBlock(call, [], [], body).set_lineno(line)


SANDBOX = _Sandbox()
