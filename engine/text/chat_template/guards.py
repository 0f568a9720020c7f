"""Rewrites a parsed chat template so that everything that may take long asks the sandbox first."""

from jinja2 import nodes
from jinja2.exceptions import TemplateRuntimeError

from cachegraph.common.jinja_guards import GuardedCode, guard

__all__ = ["Guards", "check_depth"]

MAX_DEPTH = 200
_FOREIGN = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends, nodes.Block)


class Guards(GuardedCode):
    """Replaces comparisons and dicts, too, and pays for the template's own text."""

    concat, make_list, make_tuple = "join_texts", "make_list", "make_tuple"

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:
        return nodes.Const(node.data, lineno=node.lineno)  # so that it is paid for like any other output

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        if len(node.ops) == 1:
            operator = nodes.Const(node.ops[0].op, lineno=node.lineno)
            return guard("compare", node, [operator, node.expr, node.ops[0].expr])
        node.expr = guard("weighed", node, [node.expr])
        for operand in node.ops:
            operand.expr = guard("weighed", node, [operand.expr])
        return node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return guard("make_dict", node, [part for pair in node.items for part in (pair.key, pair.value)])


def check_depth(tree: nodes.Template) -> None:
    """Refuse code that is nested too deeply to be compiled, and what would read other templates.

    Raises TemplateRuntimeError for either.
    """
    todo: list[tuple[nodes.Node, int]] = [(tree, 0)]
    while todo:
        node, depth = todo.pop()
        if depth > MAX_DEPTH:
            raise TemplateRuntimeError("the chat template's code is nested too deeply")
        if isinstance(node, _FOREIGN):
            raise TemplateRuntimeError(f"a chat template can't hold {type(node).__name__.lower()!r}")
        todo.extend((child, depth + 1) for child in node.iter_child_nodes())
