"""Parse the code of templates and expressions, and reject forbidden code with its line and column.

`sandbox.py` limits what the code may do at run time.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache

from jinja2 import TemplateError, meta, nodes
from jinja2.exceptions import TemplateSyntaxError

from cachegraph.common.did_you_mean import did_you_mean

from .filters import FILTERS
from .sandbox import ATTRIBUTES, SANDBOX, TESTS

__all__ = ["CODE", "MARK", "Code", "TemplateProblem", "locate", "parse"]

MAX_DEPTH = 60  # nesting levels of code
TOO_DEEP = ("the template's code is nested too deeply", "", "")

MARK = "\ufdd0"  # a noncharacter that marks slots during rendering
RESERVED = "the template holds the character U+FDD0, which is reserved"
CODE = re.compile(r"\{\{|\{%|\{#")
ALLOWED = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.If, nodes.For, nodes.Assign, nodes.With),
    *(nodes.Name, nodes.Const, nodes.List, nodes.Tuple, nodes.Getattr, nodes.Getitem, nodes.Slice),
    *(nodes.Filter, nodes.Test, nodes.Call, nodes.Keyword, nodes.CondExpr, nodes.Compare, nodes.Operand),
    *(nodes.And, nodes.Or, nodes.Not, nodes.Concat, nodes.Add, nodes.Sub, nodes.Mul, nodes.Div, nodes.FloorDiv),
    *(nodes.Mod, nodes.Pow, nodes.Neg, nodes.Pos),
)
BLOCKS = {"AssignBlock": "set block", "CallBlock": "call block", "FilterBlock": "filter block", "FromImport": "from"}

# Jinja2's names for what stands in the template
_ENDS = {"'end of print statement'": "'}}'", "'end of statement block'": "'%}'"}


class TemplateProblem(Exception):
    """A template that can't be compiled or rendered. Line and column are 1-based positions in the template."""

    def __init__(self, message: str, line: int = 1, column: int = 1, hint: str = ""):
        super().__init__(message)
        self.message = message
        self.line = line
        self.column = column
        self.hint = hint


@dataclass(frozen=True)
class Code:
    """Checked code: its tree, the names it requires, and those whose `data` it reads."""

    tree: nodes.Template
    names: frozenset[str]
    fields: frozenset[str]


def parse(source: str, objects: Collection[str] | None = ()) -> Code:
    """Parse and check a template's code. Raises TemplateProblem for anything forbidden.

    `objects` are the names of structured values, whose attributes are their keys; None: any name may be one.
    """
    if MARK in source:
        raise TemplateProblem(RESERVED, *_place(source, MARK))
    try:
        _check(_tree(source), source, objects)
        return _code(source)
    except TemplateSyntaxError as error:
        raise _syntax(error, source) from error
    except TemplateError as error:
        raise TemplateProblem(str(error)) from error
    except (RecursionError, ValueError) as error:
        raise TemplateProblem("the template's code is too deep or too large to read; make it simpler") from error


@lru_cache(maxsize=1024)
def _tree(source: str) -> nodes.Template:
    """Parse to Jinja's tree. The tree is shared, so it must not be modified."""
    return SANDBOX.parse(source)


@lru_cache(maxsize=1024)
def _code(source: str) -> Code:
    tree = _tree(source)
    names = frozenset(meta.find_undeclared_variables(tree))
    called = {call.node.name for call in tree.find_all(nodes.Call) if isinstance(call.node, nodes.Name)}
    reads = tree.find_all(nodes.Getattr)
    fields = {read.node.name for read in reads if read.attr == "data" and isinstance(read.node, nodes.Name)}
    return Code(tree, names - called, names & fields)


def _check(tree: nodes.Template, source: str, objects: Collection[str] | None) -> None:
    bound = {name.name for name in tree.find_all(nodes.Name) if name.ctx != "load"}
    known = None if objects is None else {*objects, *bound}
    todo: list[tuple[nodes.Node, int]] = [(tree, 0)]
    while todo:
        node, depth = todo.pop()
        problem = _objection(node, known) if depth <= MAX_DEPTH else TOO_DEEP
        if problem is not None:
            message, word, hint = problem
            raise TemplateProblem(message, *locate(source, node.lineno, word), hint)
        depth += 4 if isinstance(node, nodes.For) else 1  # Python nests at most 20 loops
        todo.extend((child, depth) for child in node.iter_child_nodes())


def _objection(node: nodes.Node, objects: Collection[str] | None) -> tuple[str, str, str] | None:
    """Why this node is forbidden: a message, the word to point at, a hint; None if it is allowed."""
    kind = type(node).__name__
    match node:
        case nodes.For(recursive=True):
            return "a loop in a prompt can't be recursive", "recursive", ""
        case nodes.Filter():
            if node.node is None:
                return "a prompt can't have filter blocks", "filter", "apply the filter with '|'"
            return None if node.name in FILTERS else _unknown("filter", node.name, FILTERS)
        case nodes.Test():
            return None if node.name in TESTS else _unknown("test", node.name, TESTS)
        case nodes.Getattr():
            known = node.attr in ATTRIBUTES or _in_object(node.node, objects)
            return None if known else _unknown("attribute", node.attr, ATTRIBUTES)
        case nodes.Call():
            callable_here = isinstance(node.node, nodes.Getattr) or getattr(node.node, "name", "") == "range"
            if not callable_here or node.dyn_args is not None or node.dyn_kwargs is not None:
                name = getattr(node.node, "name", "")
                return "only range() and the methods of texts and of 'loop' can be called in a prompt", name, ""
        case nodes.Name(name=str() as name) if len(name) > 100:
            return "a name in the template is longer than 100 characters", "", ""
        case nodes.Const(value=str() as text) if MARK in text:
            return RESERVED, "", ""
        case _ if not isinstance(node, ALLOWED):
            what = BLOCKS.get(kind, kind.lower())
            return f"a prompt can't hold {what!r}", what.removesuffix(" block"), "it may use if, for, set and with"
    return None


def _in_object(node: nodes.Node, objects: Collection[str] | None) -> bool:
    """Whether this may be structured data, whose attributes are its keys."""
    while isinstance(node, nodes.Getattr | nodes.Getitem):
        if isinstance(node, nodes.Getattr) and node.attr == "data":
            return True
        node = node.node
    return isinstance(node, nodes.Name) and node.name != "loop" and (objects is None or node.name in objects)


def _unknown(what: str, name: str, known: Collection[str]) -> tuple[str, str, str]:
    hint = did_you_mean(name, known, f"known are {', '.join(sorted(known))}")
    return f"unknown {what} {name!r} in the template", name, hint


def _syntax(error: TemplateSyntaxError, source: str) -> TemplateProblem:
    message = (error.message or "the template can't be read").rstrip(".")
    for jinja_name, written in _ENDS.items():
        message = message.replace(jinja_name, written)
    quoted = re.search(r"got '([^']+)'", message) or re.search(r"'([^']+)'", message)
    if unclosed := re.search(r"The innermost block that needs to be closed is '(\w+)'", message):
        message = f"'{{% {unclosed[1]} %}}' is never closed; add '{{% end{unclosed[1]} %}}'"
    elif message == "unexpected '}'":
        message = f"{message}; a value ends with '}}}}', a statement with '%}}'"
    message = message[0].lower() + message[1:]
    return TemplateProblem(f"template: {message}", *locate(source, error.lineno, quoted[1] if quoted else ""))


def locate(source: str, line: int, word: str) -> tuple[int, int]:
    """Find the column of `word` in the line's code, else of the code itself: Jinja2 reports lines only."""
    lines = re.split(r"\r\n|\r|\n", source)
    line = min(max(line, 1), len(lines))
    text = lines[line - 1]
    code = CODE.search(text)
    start = code.start() if code else 0
    found = re.compile(rf"(?<!\w){re.escape(word)}(?!\w)" if word.isidentifier() else re.escape(word)).search(
        text, start
    )
    return line, (found.start() if word and found else start) + 1


def _place(source: str, character: str) -> tuple[int, int]:
    index = source.index(character)
    return source.count("\n", 0, index) + 1, index - source.rfind("\n", 0, index)
