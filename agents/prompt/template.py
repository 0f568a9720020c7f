"""Templates whose output records where every character comes from.

A template is compiled once and rendered into text plus *spans*: template text, the value of a name, or the slot of a
reply that does not travel as text. Compiled Jinja2 code yields its output in pieces, and values are `str` objects that
know their name, so the pieces give the spans; only a slot that passed an operator is found by its mark. `sandbox.py`
limits what a template may do.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Literal

import jinja2
from jinja2 import TemplateError, nodes

from cachegraph.common.surrogates import mend
from cachegraph.common.template_budget import Budget, render_budget

from .bounded_template import is_bounded
from .filters import Made, Value
from .parse_template import CODE, MARK, TemplateProblem, locate, parse
from .sandbox import SANDBOX, Guarding
from .template_usage import Use, find_uses, find_whole

__all__ = ["Rendered", "Span", "Template", "TemplateProblem", "as_value", "compile_template"]

MAX_OUTPUT = 64_000_000  # characters

# A slot is two characters that no prompt contains: a noncharacter, then the slot's number in a private plane.
PRIVATE = 0xF0000
SLOT = re.compile("\ufdd0([\U000f0000-\U000ffffd])")


# Template text; a name's value; other output of an expression; the place of a reply; template text that
# counts as an agent's.
Kind = Literal["template", "value", "made", "slot", "own"]


@dataclass(frozen=True, slots=True)
class Span:
    """The characters [start, end) of a rendered text. A slot is an empty span."""

    start: int
    end: int
    origin: str | None  # the name whose value or slot it is; None for other text
    kind: Kind


@dataclass(frozen=True, slots=True)
class Rendered:
    """A text and the spans that cover it, in order and without gaps."""

    text: str
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Template:
    """A compiled template. Safe for concurrent rendering in many threads."""

    source: str
    names: frozenset[str]  # names that `render` requires
    fields: frozenset[str]  # the subset of `names` whose `data` it reads
    _tree: nodes.Template | None = field(repr=False, compare=False)  # None: plain text

    @cached_property
    def uses(self) -> dict[str, Use]:
        """How it uses each name."""
        return {} if self._tree is None else find_uses(self._tree)

    @cached_property
    def bounded(self) -> bool:
        """Whether rendering takes no longer than copying its values."""
        return self._tree is None or is_bounded(self._tree)

    @cached_property
    def whole(self) -> frozenset[str]:
        """The names whose whole text it always prints."""
        return frozenset() if self._tree is None else find_whole(self._tree) & self.names

    @cached_property
    def heard(self) -> frozenset[str]:
        """The names that it prints or processes, beyond testing whether they have a value."""
        return frozenset(name for name, use in self.uses.items() if use != Use.TESTED) & self.names

    @cached_property
    def own_words(self) -> bool:
        """Whether it prints text beside values."""
        if self._tree is None:
            return bool(self.source.strip())
        return any(part.data.strip() for part in self._tree.find_all(nodes.TemplateData))

    def place(self, name: str) -> tuple[int, int]:
        """The line and column where the template first uses `name`."""
        lines = [node.lineno for node in self._tree.find_all(nodes.Name) if node.name == name] if self._tree else [1]
        return locate(self.source, min(lines, default=1), name)

    def render(self, values: Mapping[str, Any], slots: Collection[str] = ()) -> Rendered:
        """Render the text for these values; each name in `slots` leaves an empty span. Raises TemplateProblem."""
        if self._tree is None:
            return _assemble([_plain(self.source)], [])
        names = sorted(self.names)
        texts = {name: as_value(values[name], name) for name in names if name in values}
        for number, name in enumerate(names):
            if name in slots:
                texts[name] = Value(MARK + chr(PRIVATE + number), name, getattr(texts.get(name), "data", None))
        try:
            with render_budget() as budget:
                return _assemble(self._pieces(texts, budget), [name if name in slots else "" for name in names])
        except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, RecursionError) as error:
            raise self._problem(error) from error

    def _pieces(self, texts: dict[str, Any], budget: Budget) -> Iterator[str]:
        code = self._code
        for piece in code.root_render_func(code.new_context(texts)):
            budget.spend()
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
        return TemplateProblem(message, *locate(self.source, line, ""))


def compile_template(source: str, objects: Collection[str] | None = ()) -> Template:
    """Compile and check a template. Raises TemplateProblem for anything forbidden in a prompt.

    `objects` are the names of structured values, whose attributes are their keys; None: any name may be one. Each
    source is compiled once, and all callers share the template.
    """
    if objects is not None and _has_code(source):
        parse(source, objects)  # checks the source; `_compiled` builds the template from it
    return _compiled(source)


@lru_cache(maxsize=1024)
def _compiled(source: str) -> Template:
    if not _has_code(source):
        return Template(source, frozenset(), frozenset(), None)
    code = parse(source, None)
    return Template(source, code.names, code.fields, code.tree)


def _has_code(source: str) -> bool:
    return MARK in source or CODE.search(source) is not None


def as_value(value: Any, name: str) -> Any:
    """Wrap a value for templates: a text knows its name, is complete, and contains no slot characters."""
    if isinstance(value, Value):
        text = _plain_text(value)
        return value if text is value and value.data is None else Value(text, value.origin, _plain_data(value.data))
    return Value(_plain_text(value), name) if isinstance(value, str) else _plain_data(value)


def _plain_text(text: str) -> str:
    return mend(text.replace(MARK, "\ufffd") if MARK in text else text)


def _plain_data(value: Any) -> Any:
    if isinstance(value, str):
        return _plain_text(value)
    if isinstance(value, Mapping):
        return {_plain_text(str(key)): _plain_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_data(item) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    raise TemplateProblem(f"a template's values are JSON values, and {type(value).__name__} is not one")


def _plain(source: str) -> str:
    """Text without code as Jinja2 reads it: newlines normalised, the last one dropped."""
    if "\r" in source:
        source = source.replace("\r\n", "\n").replace("\r", "\n")
    return source.removesuffix("\n")


def _assemble(pieces: "Iterator[str] | list[str]", slots: list[str]) -> Rendered:
    texts: list[str] = []
    spans: list[Span] = []
    at = 0

    def add(text: str, origin: str | None, kind: Kind) -> None:
        nonlocal at
        start, at = at, at + len(text)
        if at > MAX_OUTPUT:
            raise jinja2.TemplateRuntimeError(f"the prompt grows past {MAX_OUTPUT:,} characters; repeat less")
        texts.append(text)
        if origin is None and spans and spans[-1].kind == kind:
            spans[-1] = Span(spans[-1].start, at, None, kind)
        elif text or origin is not None:
            spans.append(Span(start, at, origin, kind))

    for piece in pieces:
        if MARK not in piece:
            add(piece, *_source(piece))
            continue
        for number, part in enumerate(SLOT.split(piece)):
            if number % 2 == 0:
                add(part.replace(MARK, ""), None, "made")
            elif ord(part) - PRIVATE < len(slots) and slots[ord(part) - PRIVATE]:
                add("", slots[ord(part) - PRIVATE], "slot")
    return Rendered("".join(texts), tuple(spans))


def _source(piece: str) -> tuple[str | None, Kind]:
    """The origin and kind of a piece of output."""
    if isinstance(piece, Value):
        return piece.origin, "value"
    return None, "made" if isinstance(piece, Made) else "template"
