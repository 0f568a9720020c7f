"""Renders chat templates as transformers does, but within a budget: they are programs by a model's author.

render       renders a template and messages to text
sandbox      the environment: what a template may call, read and compute
guards       rewrites a parsed template so that everything that may take long asks the sandbox
filters      filters and tests, each charged to the budget before it runs
methods      methods of texts, lists and objects, charged likewise
formatting   `%` and `format`, with bounded widths
"""

from .render import render_chat_template, render_open_chat

__all__ = ["render_chat_template", "render_open_chat"]
