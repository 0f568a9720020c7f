"""Find how a template uses a name: prints it, tests it, reads its data, or processes its text.

A slot can hold a KV cache only if the template does nothing but print the name: a filter, a slice, a comparison or a
loop needs the text.
"""

from collections.abc import Iterator
from enum import Flag, auto

from jinja2 import nodes

__all__ = ["Use", "find_uses", "find_whole"]


class Use(Flag):
    """A use of a name in a template."""

    PRINTED = auto()  # {{ name }}: a slot
    TESTED = auto()  # {% if name %}: whether there is a reply
    DATA = auto()  # {{ name.data.field }}: the JSON value beside the text
    WORKED_ON = auto()  # {{ name | upper }}, {% if 'yes' in name %}, {% for line in name.splitlines() %}


def find_uses(tree: nodes.Template) -> dict[str, Use]:
    """All uses in a template's tree, by name."""
    found: dict[str, Use] = {}
    for name, use in _uses(tree, Use.WORKED_ON):
        found[name] = found.get(name, use) | use
    return found


def find_whole(tree: nodes.Template) -> frozenset[str]:
    """The names whose whole text is printed for any values."""
    return frozenset(_whole(tree))


def _whole(node: nodes.Node) -> Iterator[str]:
    match node:
        case nodes.Name(name=name):
            yield name
        case nodes.Template(body=parts) | nodes.Output(nodes=parts) | nodes.Concat(nodes=parts):
            for part in parts:
                yield from _whole(part)
        case nodes.If(test=nodes.Name(name=name), body=body):  # printed unless it is empty
            yield from {name} & {printed for part in body for printed in _whole(part)}
        case nodes.CondExpr(test=nodes.Name(name=name), expr1=nodes.Name(name=shown)) if name == shown:
            yield name
        case nodes.Or(left=left):
            yield from _whole(left)
        case nodes.Add(left=left, right=right):
            yield from (*_whole(left), *_whole(right))
        case nodes.Filter(node=nodes.Expr() as inner, name="default" | "d" | "trim" | "string"):
            yield from _whole(inner)


def _uses(node: nodes.Node, use: Use) -> Iterator[tuple[str, Use]]:
    """Yield the names below a node whose value has this use."""
    if isinstance(node, nodes.Name) and node.ctx == "load":
        yield node.name, use
        return
    if _is_data(node):
        yield node.node.name, Use.DATA  # type: ignore[attr-defined]
        return
    known = [*_statement(node, use), *_choice(node, use), *_joined(node, use)]
    for child, its_use in known or [(child, Use.WORKED_ON) for child in node.iter_child_nodes()]:
        yield from _uses(child, its_use)


def _is_data(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Getattr) and node.attr == "data" and isinstance(node.node, nodes.Name)


def _statement(node: nodes.Node, use: Use) -> Iterator[tuple[nodes.Node, Use]]:
    match node:
        case nodes.Output(nodes=parts):
            yield from ((part, Use.PRINTED) for part in parts)
        case nodes.If(test=test, body=body, elif_=others, else_=rest):
            yield test, Use.TESTED
            yield from ((child, use) for child in (*body, *others, *rest))


def _choice(node: nodes.Node, use: Use) -> Iterator[tuple[nodes.Node, Use]]:
    """Yield nodes that test whether a reply exists, and the branches they select."""
    match node:
        case nodes.CondExpr(test=test, expr1=first, expr2=second):
            yield test, Use.TESTED
            yield from ((branch, use) for branch in (first, second) if branch is not None)
        case nodes.Not(node=inner) if use is Use.TESTED:
            yield inner, use
        case nodes.And(left=left, right=right) | nodes.Or(left=left, right=right):
            yield left, use | Use.TESTED
            yield right, use
        case nodes.Test(node=inner, name="defined" | "undefined" | "none"):
            yield inner, Use.TESTED


def _joined(node: nodes.Node, use: Use) -> Iterator[tuple[nodes.Node, Use]]:
    """Yield operands that are printed whole within other text."""
    match node:
        case nodes.Concat(nodes=parts) if use is Use.PRINTED:
            yield from ((part, use) for part in parts)
        case nodes.Add(left=left, right=right) if use is Use.PRINTED:
            yield from ((left, use), (right, use))
        case nodes.Filter(node=nodes.Expr() as inner, name="default" | "d", args=arguments):
            yield from ((operand, use) for operand in (inner, *arguments))
        case nodes.Filter(node=nodes.Expr() as inner, name="trim" | "string", args=[]):
            yield inner, use
