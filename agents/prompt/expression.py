"""Compile and evaluate the expressions of a recipe, conditions and lists, in the sandbox of templates.

An expression is the code between `{{` and `}}`; it may also be written with the braces.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jinja2
from jinja2 import TemplateError, Undefined, nodes

from cachegraph.common.template_budget import render_budget

from .bounded_template import is_bounded
from .parse_template import TemplateProblem, locate, parse
from .sandbox import SANDBOX, Guarding
from .template import as_value

__all__ = ["Expression", "compile_expression"]

BRACES = re.compile(r"\s*\{\{-?(.*?)-?\}\}\s*", re.DOTALL)
RESULT = f"{'result':_<101}"  # longer than any name in an expression may be


@dataclass(frozen=True)
class Expression:
    """A compiled expression. Safe for concurrent evaluation in many threads."""

    source: str
    names: frozenset[str]  # names that `evaluate` requires
    fields: frozenset[str]  # the subset of `names` whose `data` it reads
    _tree: nodes.Template = field(repr=False, compare=False)
    _text: str = field(repr=False, compare=False)  # the source in braces

    def place(self, name: str) -> tuple[int, int]:
        """The line and column where the expression first uses `name`."""
        lines = [node.lineno for node in self._tree.find_all(nodes.Name) if node.name == name]
        return locate(self.source, min(lines, default=1), name)

    @cached_property
    def bounded(self) -> bool:
        """Whether evaluation takes no longer than copying its values."""
        return is_bounded(self._tree)

    def evaluate(self, values: Mapping[str, Any]) -> Any:
        """Evaluate the expression for these values. Raises TemplateProblem."""
        code = self._code
        try:
            context = code.new_context({name: as_value(values[name], name) for name in self.names if name in values})
            with render_budget():
                for _ in code.root_render_func(context):
                    pass
                value = context.vars[RESULT]
                if isinstance(value, Undefined):
                    value._fail_with_undefined_error()
        except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, RecursionError) as error:
            message = str(error) if isinstance(error, TemplateError) else f"the expression fails: {error}"
            raise TemplateProblem(message) from error
        return value

    @cached_property
    def _code(self) -> jinja2.Template:
        output = SANDBOX.parse(self._text).body[0]
        assert isinstance(output, nodes.Output)
        assign = nodes.Assign(nodes.Name(RESULT, "store", lineno=1), output.nodes[0], lineno=1)
        tree = Guarding().visit(nodes.Template([assign], lineno=1))
        tree.set_environment(SANDBOX)
        try:
            code = SANDBOX.compile(tree)
        except (SyntaxError, MemoryError, RecursionError) as error:
            raise TemplateProblem("the expression is nested too deeply; make it flatter") from error
        return jinja2.Template.from_code(SANDBOX, code, dict(SANDBOX.globals))


def compile_expression(source: str, objects: Collection[str] | None = ()) -> Expression:
    """Compile and check an expression. Raises TemplateProblem with lines and columns of `source`."""
    braced = BRACES.fullmatch(source) is not None
    text = source.strip() if braced else "{{" + source + "}}"
    try:
        code = parse(text, objects)
    except TemplateProblem as problem:
        shift = 0 if braced or problem.line > 1 else 2
        message = problem.message.replace("'}}'", "'end of the expression'")
        column = min(max(problem.column - shift, 1), max(len(source.split("\n")[problem.line - 1]), 1))
        raise TemplateProblem(message, problem.line, column, problem.hint) from problem
    body = code.tree.body
    if len(body) != 1 or not isinstance(body[0], nodes.Output) or len(body[0].nodes) != 1:
        raise TemplateProblem("an expression is one value, as between '{{' and '}}'")
    if isinstance(body[0].nodes[0], nodes.TemplateData):
        raise TemplateProblem("an expression is one value, and this is empty")
    return Expression(source, code.names, code.fields, code.tree, text)
