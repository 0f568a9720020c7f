"""Renders a chat template and messages to text, within a budget. Raises exceptions of Jinja2 or Python."""

import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import jinja2
from jinja2.exceptions import TemplateRuntimeError

from cachegraph.common.template_budget import render_budget

from .guards import Guards, check_depth
from .sandbox import SANDBOX

__all__ = ["render_chat_template", "render_open_chat"]

MAX_SOURCE = 1_000_000  # characters of a template
MAX_OUTPUT = 64_000_000
_TAG = "CONTINUE_FINAL_MESSAGE_TAG "
STEPS = 500_000  # long conversations take more than prompts do


def render_chat_template(
    source: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = False,
    **variables: Any,
) -> str:
    """The text that transformers' `apply_chat_template` makes of the same arguments.

    Raises jinja2.TemplateError where the template refuses the messages or spends more than its budget.
    """
    compiled = _compile(source)
    values = {
        "messages": _plain(
            [{key: value for key, value in message.items() if value is not None} for message in messages]
        ),
        "tools": _plain(tools),
        "documents": None,
        "add_generation_prompt": add_generation_prompt,
        **{name: _plain(value) for name, value in variables.items()},
    }
    try:
        with render_budget(STEPS):
            pieces: list[str] = []
            size = 0
            for piece in compiled.root_render_func(compiled.new_context(values)):
                pieces.append(piece)
                size += len(piece)
                if size > MAX_OUTPUT:
                    raise TemplateRuntimeError(f"the chat grows past {MAX_OUTPUT:,} characters; repeat less")
            return "".join(pieces)
    except RecursionError as error:
        raise TemplateRuntimeError("the chat template calls itself without an end") from error


def render_open_chat(source: str, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
    """The same up to the last message's end, so that a reply continues it (`continue_final_message`).

    Raises TemplateRuntimeError if the template leaves out the last message.
    """
    last = {**messages[-1], "content": f"{messages[-1]['content']}{_TAG}"}
    rendered = render_chat_template(source, [*messages[:-1], last], **variables)
    end = rendered.rfind(_TAG.strip())
    if end < 0:
        raise TemplateRuntimeError("the chat template leaves out the last message, which the reply is to continue")
    return rendered[:end] if rendered.startswith(_TAG, end) else rendered[:end].rstrip()


@lru_cache(maxsize=32)
def _compile(source: str) -> jinja2.Template:
    if len(source) > MAX_SOURCE:
        raise TemplateRuntimeError(f"a chat template has at most {MAX_SOURCE:,} characters")
    try:
        tree = SANDBOX.parse(source)
        check_depth(tree)
        tree = Guards().visit(tree)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # of the Python that Jinja2 makes of it
            code = SANDBOX.compile(tree)
    except (SyntaxError, MemoryError, RecursionError, ValueError) as error:
        raise TemplateRuntimeError("the chat template is too deep or too large to be compiled") from error
    return jinja2.Template.from_code(SANDBOX, code, dict(SANDBOX.globals))


def _plain(value: Any) -> Any:
    """A copy of plain JSON types: nothing that a template reaches is shared, or has methods of its own."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value)
