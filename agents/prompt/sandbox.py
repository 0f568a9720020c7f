"""Sandbox: a small, bounded subset of Jinja2, safe for untrusted templates.

Jinja2's own sandbox denies access to Python; this one bounds time and memory. Every loop step, filter, method, operator
and comparison passes a guard that charges the render's budget, and each guard's work is linear in bounded text.
Independent of prompts and agents.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jinja2 import StrictUndefined, Undefined, nodes, pass_context
from jinja2.exceptions import TemplateRuntimeError
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cachegraph.common.jinja_guards import GuardedCode, TokenLimit, guard

from .filters import FILTERS, METHODS, Made, Value, bulk, count_of, kind_of, number_of, range_of, spend, text_of

__all__ = ["ATTRIBUTES", "SANDBOX", "TESTS", "Guarding", "Sandbox"]

LOOP = frozenset(
    {"changed", "cycle", "first", "index", "index0", "last", "length", "nextitem", "previtem", "revindex", "revindex0"}
)
BOOKKEEPING = ("_loop_vars", "_block_vars")  # compiled code passes these to every call
ATTRIBUTES = LOOP | METHODS.keys() | {"data"}
NUMBER_TESTS = ("divisibleby", "even", "odd")  # they compute `value % n`, which formats a text
TESTS = (
    *("defined", "divisibleby", "eq", "even", "ge", "gt", "in", "le", "lt"),
    *("ne", "none", "number", "odd", "string", "undefined"),
)


@pass_context
def _finalize(_context: Any, value: Any) -> str:
    spend()
    text = text_of(value)
    return text if isinstance(text, Value) else Made(text)


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja2's sandbox with time and memory bounded. `Guarding` makes compiled code call it."""

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])

    def __init__(self) -> None:
        # Unoptimized: the optimizer would evaluate constants at compile time, before a budget exists.
        super().__init__(
            undefined=StrictUndefined,
            optimized=False,
            finalize=_finalize,
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[TokenLimit],
        )
        known: dict[str, Any] = dict(self.tests)
        self.globals = {"range": range_of}
        self.filters = dict(FILTERS)
        self.tests = {name: _tested(known[name], name in NUMBER_TESTS) for name in TESTS}

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        spend()
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            return self.concat(left, right)
        if operator == "*" and isinstance(left, str):
            times = max(count_of(right), 0)
            spend(len(left) * times)
            return left * times
        if operator == "**" and abs(number_of(right)) > 63:
            raise TemplateRuntimeError("that power is too large")
        return number_of(self.binop_table[operator](number_of(left), number_of(right)))

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        if not callable(function) or isinstance(function, Undefined):
            raise TemplateRuntimeError("only range() and the methods of texts and of 'loop' can be called")
        is_guard = getattr(function, "__self__", None) is self
        spend(0 if is_guard else bulk(args) // 16)
        return function(*args, **{key: value for key, value in kwargs.items() if key not in BOOKKEEPING})

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, LoopContext) and attribute in LOOP:
            return getattr(obj, attribute)
        if isinstance(obj, Value) and attribute == "data":
            return obj.data
        if isinstance(obj, str) and attribute in METHODS:
            return lambda *args: METHODS[attribute](obj, *args)
        if isinstance(obj, dict) and attribute in obj:
            return obj[attribute]
        return self.undefined(f"{kind_of(obj)} has no {attribute!r}")

    def getitem(self, obj: Any, argument: Any) -> Any:
        spend()
        if isinstance(obj, str | list | tuple | range) and isinstance(argument, int):
            try:
                return obj[argument]
            except IndexError:
                pass
        if isinstance(obj, dict) and isinstance(argument, str) and argument in obj:
            return obj[argument]
        return self.undefined(f"{kind_of(obj)} has no item {argument!r}")

    def each(self, iterable: Any) -> Iterator[Any]:
        """Yield the items of a loop and charge a step for each."""
        if isinstance(iterable, Undefined):
            iterable._fail_with_undefined_error()
        if not isinstance(iterable, Iterable):
            raise TemplateRuntimeError(f"{kind_of(iterable)} can't be looped over")
        for item in iterable:
            spend()
            yield item

    def step(self, value: Any) -> Any:
        """Charge one side of a comparison, which may be long."""
        spend(bulk(value) // 16)
        return value

    def slice(self, obj: Any, *bounds: Any) -> Any:
        """Slice a text or a list."""
        if not isinstance(obj, str | list | tuple | range):
            raise TemplateRuntimeError("only texts and lists can be sliced")
        part = obj[slice(*(None if bound is None else int(number_of(bound)) for bound in bounds))]
        spend(len(part))
        return part

    def concat(self, *parts: Any) -> str:
        """Concatenate texts."""
        texts = [text_of(part) for part in parts]
        spend(sum(map(len, texts)))
        return "".join(texts)

    def flat(self, *items: Any) -> list[Any]:
        """Build a list of plain values; nested lists could double in size with every line."""
        for item in items:
            text_of(item)
        spend(len(items))
        return list(items)


def _tested(test: Callable[..., bool], numbers: bool) -> Callable[..., bool]:
    def guarded(*args: Any) -> bool:
        spend(bulk(args) // 16)
        return test(*(map(number_of, args) if numbers else args))

    return guarded


class Guarding(GuardedCode):
    """Rewrites a parsed template so that every operation that could take long asks the sandbox first."""

    concat, make_list, make_tuple = "concat", "flat", "flat"

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = guard("step", node, [node.expr])
        return node


SANDBOX = Sandbox()
