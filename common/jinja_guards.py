"""Guards and limits that the sandboxes of prompts and chat templates share."""

from collections.abc import Callable, Iterator
from typing import Any, ClassVar, cast

from jinja2 import nodes
from jinja2.exceptions import TemplateRuntimeError
from jinja2.ext import Extension
from jinja2.visitor import NodeTransformer

from .template_budget import MAX_ITEMS

__all__ = ["GuardedCode", "TokenLimit", "bounded_range", "guard"]

MAX_TOKENS = 20_000  # per template; plain text is not counted


class GuardedCode(NodeTransformer):
    """Rewrites a parsed template so that loops, lists, tuples, slices and concatenations call methods of the sandbox.

    The sandbox has the methods `each` and `slice`; a subclass names the others.
    """

    concat: ClassVar[str]
    make_list: ClassVar[str]
    make_tuple: ClassVar[str]

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = guard("each", node, [cast("nodes.Expr", node.iter)])
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return guard(self.concat, node, node.nodes)

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return guard(self.make_list, node, node.items)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return guard(self.make_tuple, node, node.items) if node.ctx == "load" else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        none = nodes.Const(None, lineno=node.lineno)
        bounds = [node.arg.start or none, node.arg.stop or none, node.arg.step or none]
        return guard("slice", node, [node.node, *bounds])


class TokenLimit(Extension):
    """Limits the number of code tokens. A subclass names the kind of template."""

    kind: ClassVar[str] = "template"

    def filter_stream(self, stream: Any) -> Iterator[Any]:
        for number, token in enumerate(stream):
            if number > MAX_TOKENS:
                raise TemplateRuntimeError(f"a {self.kind} has at most {MAX_TOKENS:,} words of code")
            yield token


def guard(name: str, node: nodes.Node, args: list[nodes.Expr]) -> nodes.Call:
    """Build a call of the sandbox's method of this name."""
    return nodes.Call(nodes.EnvironmentAttribute(name), args, [], None, None, lineno=node.lineno)


def bounded_range(count_of: Callable[[Any], int], *bounds: Any) -> range:
    """Return a `range` of limited length, with bounds that `count_of` accepts."""
    numbers = range(*map(count_of, bounds))
    if len(numbers) > MAX_ITEMS:
        raise TemplateRuntimeError(f"a range has at most {MAX_ITEMS:,} numbers")
    return numbers
