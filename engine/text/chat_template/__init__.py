"""Chat templates as transformers renders them, but within a budget: they are programs of a model's author.

render.py        a template and messages to text
sandbox.py       the environment: what a template may call, read and compute
guards.py        rewrites a parsed template so that everything that may take long asks the sandbox
filters.py       filters and tests, each paid before it works
methods.py       methods of texts, lists and objects
formatting.py    `%` and `format`, whose widths are bounded
"""

from .render import render_chat_template, render_open_chat

__all__ = ["render_chat_template", "render_open_chat"]
