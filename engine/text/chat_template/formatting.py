"""`'...' % values` and `'...'.format(values)` with bounded widths: one number may ask for gigabytes."""

import re
import string
from collections.abc import Mapping
from typing import Any

from jinja2.exceptions import TemplateRuntimeError

from cachegraph.common.template_budget import spend, weigh

__all__ = ["format_braces", "format_percent"]

MAX_WIDTH = 1_000
_PERCENT = re.compile(r"%(?:\([^)]*\))?[#0\- +]*(\*|\d*)(?:\.(\*|\d*))?[hlL]?(.)", re.DOTALL)
_NUMBER = re.compile(r"\d+")


def format_percent(template: str, values: Any) -> str:
    """`template % values`, paid first. Raises TemplateRuntimeError for a width beyond bounds."""
    places = 0
    for width, precision, _ in _PERCENT.findall(template):
        places += 1
        if "*" in (width, precision) or any(_wide(number) for number in (width, precision)):
            raise TemplateRuntimeError(f"a width in a format is at most {MAX_WIDTH:,} and written out")
    _pay(template, places, values)
    text: str = template % values
    return text


def format_braces(template: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """`template.format(*args, **kwargs)`, paid first. Fields are names and numbers; nothing is looked up in values."""
    places = 0
    for _, field, spec, _ in string.Formatter().parse(template):
        places += 1
        if field and ("." in field or "[" in field):
            raise TemplateRuntimeError("a field of a format names a value, and nothing inside it")
        if spec and ("{" in spec or any(_wide(number) for number in _NUMBER.findall(spec))):
            raise TemplateRuntimeError(f"a width in a format is at most {MAX_WIDTH:,} and written out")
    _pay(template, places, [*args, *kwargs.values()])
    return template.format(*args, **kwargs)


def _wide(number: str) -> bool:
    return len(number) > 4 or int(number or 0) > MAX_WIDTH


def _pay(template: str, places: int, values: Any) -> None:
    weight = weigh(values)
    spend(len(template) + places * (MAX_WIDTH + 6 * weight.characters + 8 * weight.items))
