"""Prompt templates that remember where every character of a prompt came from.

A template is compiled once and rendered into text plus *spans*: which stretch is the template's own, which is the value
of which name, and where the slot of a message that doesn't travel as text stands. Compiled Jinja2 code yields its
output piece by piece and values are `str` objects that know their name, so spans fall out of the pieces; only a slot
that went through an operator is found again by its mark. What a template may do is `sandbox.py`'s matter.
"""

import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import jinja2
from jinja2 import TemplateError, meta, nodes
from jinja2.exceptions import TemplateSyntaxError

from .filters import BUDGET, FILTERS, Budget, Value
from .sandbox import ATTRIBUTES, SANDBOX, TESTS, Guarding

__all__ = ["Rendered", "Span", "Template", "TemplateProblem", "compile_template"]

MAX_OUTPUT = 64_000_000  # characters
MAX_DEPTH = 60  # of nested code

# A slot is two characters that no prompt holds: a noncharacter, then the slot's number in a private plane.
MARK = "\ufdd0"
PRIVATE = 0xF0000
SLOT = re.compile("\ufdd0([\U000f0000-\U000ffffd])")

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


class TemplateProblem(Exception):
    """A template that can't be compiled or rendered. Line and column are the template's own and count from 1."""

    def __init__(self, message: str, line: int = 1, column: int = 1, hint: str = ""):
        super().__init__(message)
        self.message = message
        self.line = line
        self.column = column
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Span:
    """The characters from `start` to `end` of a rendered text. A slot is empty: it is a place."""

    start: int
    end: int
    origin: str | None  # the name it is the value or the slot of; None for the template's own text
    kind: Literal["template", "value", "slot"]


@dataclass(frozen=True, slots=True)
class Rendered:
    """A text, and the spans that cover it in order and without gaps."""

    text: str
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Template:
    """A compiled template. Safe to render from many threads at once."""

    source: str
    names: frozenset[str]  # what `render` must be given
    _tree: nodes.Template | None = field(repr=False, compare=False)  # None: plain text

    def place(self, name: str) -> tuple[int, int]:
        """The line and column where the template first uses `name`."""
        lines = [node.lineno for node in self._tree.find_all(nodes.Name) if node.name == name] if self._tree else [1]
        return _locate(self.source, min(lines, default=1), name)

    def render(self, values: Mapping[str, str], slots: Collection[str] = ()) -> Rendered:
        """The text for these values; a name in `slots` leaves an empty span. Raises TemplateProblem."""
        if self._tree is None:
            return _assemble([_plain(self.source)], [])
        names = sorted(self.names)
        texts = {name: Value(str(value).replace(MARK, "\ufffd"), name) for name, value in values.items()}
        for number, name in enumerate(names):
            if name in slots:
                texts[name] = Value(MARK + chr(PRIVATE + number), name)
        token = BUDGET.set(Budget())
        try:
            return _assemble(self._pieces(texts), [name if name in slots else "" for name in names])
        except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, RecursionError) as error:
            raise self._problem(error) from error
        finally:
            BUDGET.reset(token)

    def _pieces(self, texts: dict[str, Value]) -> Iterator[str]:
        code = self._code
        for piece in code.root_render_func(code.new_context(texts)):
            BUDGET.get().spend()
            yield piece

    @cached_property
    def _code(self) -> jinja2.Template:
        assert self._tree is not None
        tree = Guarding().visit(SANDBOX.parse(self.source))
        try:
            code = SANDBOX.compile(tree)
        except (SyntaxError, MemoryError, RecursionError) as error:
            raise TemplateProblem("the template's code is nested too deeply; make it flatter") from error
        return jinja2.Template.from_code(SANDBOX, code, dict(SANDBOX.globals))

    def _problem(self, error: Exception) -> TemplateProblem:
        line, trace = 1, error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == "<template>":
                line = self._code.get_corresponding_lineno(trace.tb_lineno)
            trace = trace.tb_next
        message = str(error) if isinstance(error, TemplateError) else f"the template's code fails: {error}"
        return TemplateProblem(message, *_locate(self.source, line, ""))


def compile_template(source: str) -> Template:
    """Read and check a template. Raises TemplateProblem for anything that a prompt's template may not hold."""
    if MARK in source:
        raise TemplateProblem(RESERVED, *_place(source, MARK))
    if CODE.search(source) is None:
        return Template(source, frozenset(), None)
    try:
        tree = SANDBOX.parse(source)
        _check(tree, source)
        names = frozenset(meta.find_undeclared_variables(tree))
    except TemplateSyntaxError as error:
        raise _syntax(error, source) from error
    except TemplateError as error:
        raise TemplateProblem(str(error)) from error
    except (RecursionError, ValueError) as error:
        raise TemplateProblem("the template's code is too deep or too large to read; make it simpler") from error
    called = {call.node.name for call in tree.find_all(nodes.Call) if isinstance(call.node, nodes.Name)}
    return Template(source, names - called, tree)


def _check(tree: nodes.Template, source: str) -> None:
    todo: list[tuple[nodes.Node, int]] = [(tree, 0)]
    while todo:
        node, depth = todo.pop()
        problem = _objection(node) if depth <= MAX_DEPTH else ("the template's code is nested too deeply", "", "")
        if problem is not None:
            message, word, hint = problem
            raise TemplateProblem(message, *_locate(source, node.lineno, word), hint)
        depth += 4 if isinstance(node, nodes.For) else 1  # Python nests at most 20 loops
        todo.extend((child, depth) for child in node.iter_child_nodes())


def _objection(node: nodes.Node) -> tuple[str, str, str] | None:
    """Why a template may not hold this: a message, the word to point at, a hint."""
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
            return None if node.attr in ATTRIBUTES else _unknown("attribute", node.attr, ATTRIBUTES)
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


def _unknown(what: str, name: str, known: Collection[str]) -> tuple[str, str, str]:
    close = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(sorted(known))}"
    return f"unknown {what} {name!r} in the template", name, hint


def _syntax(error: TemplateSyntaxError, source: str) -> TemplateProblem:
    message = (error.message or "the template can't be read").rstrip(".")
    quoted = re.search(r"'([^']+)'", message)
    message = message[0].lower() + message[1:]
    return TemplateProblem(f"template: {message}", *_locate(source, error.lineno, quoted[1] if quoted else ""))


def _locate(source: str, line: int, word: str) -> tuple[int, int]:
    """Jinja2 knows lines only: the column of `word` in the line's code, else of the code itself."""
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


def _plain(source: str) -> str:
    """Text without code, as Jinja2 reads it: newlines made one kind, a last one dropped."""
    if "\r" in source:
        source = source.replace("\r\n", "\n").replace("\r", "\n")
    return source.removesuffix("\n")


def _assemble(pieces: "Iterator[str] | list[str]", slots: list[str]) -> Rendered:
    texts: list[str] = []
    spans: list[Span] = []
    at = 0

    def add(text: str, origin: str | None, kind: Literal["template", "value", "slot"]) -> None:
        nonlocal at
        start, at = at, at + len(text)
        if at > MAX_OUTPUT:
            raise jinja2.TemplateRuntimeError(f"the prompt grows past {MAX_OUTPUT:,} characters; repeat less")
        texts.append(text)
        if kind == "template" and spans and spans[-1].kind == "template":
            spans[-1] = Span(spans[-1].start, at, None, "template")
        elif text or kind != "template":
            spans.append(Span(start, at, origin, kind))

    for piece in pieces:
        if MARK not in piece:
            add(piece, *((piece.origin, "value") if isinstance(piece, Value) else (None, "template")))
            continue
        for number, part in enumerate(SLOT.split(piece)):
            if number % 2 == 0:
                add(part.replace(MARK, ""), None, "template")
            elif ord(part) - PRIVATE < len(slots) and slots[ord(part) - PRIVATE]:
                add("", slots[ord(part) - PRIVATE], "slot")
    return Rendered("".join(texts), tuple(spans))
