"""Rewrites a parsed chat template so that everything that may take long asks the sandbox first."""

from typing import cast

from jinja2 import nodes
from jinja2.exceptions import TemplateRuntimeError
from jinja2.visitor import NodeTransformer

__all__ = ["Guards", "check_depth"]

MAX_DEPTH = 200
_FOREIGN = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends, nodes.Block)


class Guards(NodeTransformer):
    """Replaces loops, comparisons, joins, lists and slices by calls of the sandbox's methods of these names."""

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:
        return nodes.Const(node.data, lineno=node.lineno)  # so that it is paid for like any other output

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _guard("each", node, [cast("nodes.Expr", node.iter)])
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        if len(node.ops) == 1:
            operator = nodes.Const(node.ops[0].op, lineno=node.lineno)
            return _guard("compare", node, [operator, node.expr, node.ops[0].expr])
        node.expr = _guard("weighed", node, [node.expr])
        for operand in node.ops:
            operand.expr = _guard("weighed", node, [operand.expr])
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _guard("join_texts", node, node.nodes)

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _guard("make_list", node, node.items)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _guard("make_tuple", node, node.items) if node.ctx == "load" else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _guard("make_dict", node, [part for pair in node.items for part in (pair.key, pair.value)])

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        none = nodes.Const(None, lineno=node.lineno)
        bounds = [node.arg.start or none, node.arg.stop or none, node.arg.step or none]
        return _guard("slice", node, [node.node, *bounds])


def check_depth(tree: nodes.Template) -> None:
    """Refuse code that is nested too deeply to be compiled, and what would read other templates."""
    todo: list[tuple[nodes.Node, int]] = [(tree, 0)]
    while todo:
        node, depth = todo.pop()
        if depth > MAX_DEPTH:
            raise TemplateRuntimeError("the chat template's code is nested too deeply")
        if isinstance(node, _FOREIGN):
            raise TemplateRuntimeError(f"a chat template can't hold {type(node).__name__.lower()!r}")
        todo.extend((child, depth + 1) for child in node.iter_child_nodes())


def _guard(name: str, node: nodes.Node, args: list[nodes.Expr]) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(name), args, [], None, None, lineno=node.lineno)
