"""Find template names in single braces, probably meant as `{{ name }}`."""

import re
from collections.abc import Iterator

from ..run_warning import RunWarning
from .spec import GraphSpec

__all__ = ["find_single_braces", "single_brace_matches"]

SINGLE = re.compile(r"(?<!\{)\{ *([A-Za-z_][A-Za-z0-9_]*) *\}(?!\})")
CODE = re.compile(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", re.DOTALL)


def find_single_braces(spec: GraphSpec) -> Iterator[RunWarning]:
    """Warn of `{topic}` in a template where `topic` is a name that the template could use."""
    for agent, entry in spec.agents.items():
        senders = {edge.sender for edge in spec.edges if edge.receiver == agent}
        for key, source in entry.templates():
            for match in single_brace_matches(source):
                name = match[1]
                if name in spec.inputs or name in senders:
                    what = "input" if name in spec.inputs else "agent"
                    message = (
                        f"the {key} of agent {agent!r} holds {match[0]!r}, which stays as it is; "
                        f"write '{{{{ {name} }}}}' for the {what} {name!r}"
                    )
                    yield RunWarning("single_braces", message, (agent, key, name))


def single_brace_matches(source: str) -> Iterator[re.Match[str]]:
    """Match every name in single braces in the template's literal text."""
    yield from SINGLE.finditer(CODE.sub(lambda code: " " * len(code[0]), source))
