"""Detect templates that render in linear time: no loops, and nothing that outgrows a copy of a value."""

from jinja2 import nodes

__all__ = ["is_bounded"]

FILTERS = frozenset({"default", "d", "trim", "length", "count", "lower", "upper", "int", "float", "string"})
METHODS = frozenset({"strip", "lower", "upper", "startswith", "endswith"})
TESTS = frozenset({"defined", "undefined", "none"})
PLAIN = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.If, nodes.CondExpr),
    *(nodes.Name, nodes.Const, nodes.Getattr, nodes.Getitem),
    *(nodes.And, nodes.Or, nodes.Not, nodes.Compare, nodes.Operand, nodes.Add, nodes.Sub, nodes.Concat),
)


def is_bounded(tree: nodes.Template) -> bool:
    """Whether the template's work is linear in the lengths of its values."""
    todo: list[nodes.Node] = [tree]
    while todo:
        node = todo.pop()
        match node:
            case nodes.Filter(name=name):
                bounded = name in FILTERS
            case nodes.Test(name=name):
                bounded = name in TESTS
            case nodes.Call(node=nodes.Getattr(attr=name)):
                bounded = name in METHODS
            case _:
                bounded = isinstance(node, PLAIN)
        if not bounded:
            return False
        todo += node.iter_child_nodes()
    return True
