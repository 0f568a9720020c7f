"""Determine statically what an agent's templates read: inputs, replies, and which text they process. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..spec import AgentSpec
from .template import Template, compile_template
from .template_usage import Use

__all__ = ["PromptReads", "prompt_reads"]


@dataclass(frozen=True)
class PromptReads:
    """The names that an agent's system message and prompt read."""

    prompt: Template
    system: Template | None
    in_front: tuple[str, ...]  # upstream agents without a slot: each becomes a separate message
    names: frozenset[str]  # inputs and agents whose text the prompt may contain
    words_of: Mapping[str, str]  # by upstream agent that must send text, why
    whole: frozenset[str] = frozenset()  # the subset of `names` whose whole text the prompt always contains
    heard: frozenset[str] = frozenset()  # the subset of `names` of which it contains anything
    withheld: frozenset[str] = frozenset()  # names in the system message alone, if the agent only reads

    @property
    def templates(self) -> tuple[Template, ...]:
        return (self.prompt,) if self.system is None else (self.system, self.prompt)


def prompt_reads(agent: str, spec: AgentSpec, upstream: Sequence[str]) -> PromptReads:
    """Compile an agent's templates and list what they read. `upstream` are the agents with an edge to this one."""
    prompt = compile_template(spec.prompt, None)
    system = compile_template(spec.system, None) if spec.system is not None else None
    used = prompt.names | (system.names if system else frozenset())
    in_front = tuple(name for name in upstream if name not in used)
    templates = (prompt,) if system is None else (system, prompt)
    printed_whole = frozenset(in_front).union(*(template.whole for template in templates))
    heard = frozenset(in_front).union(*(template.heard for template in templates))
    withheld = frozenset[str]()
    if spec.generate.max_new_tokens == 0 and system is not None:
        withheld = system.heard - prompt.names
    names = (used | frozenset(in_front)) - withheld
    reads = PromptReads(prompt, system, in_front, names, {}, printed_whole - withheld, heard - withheld, withheld)
    reasons = {name: reason for name in upstream if (reason := _why_words(agent, name, reads)) is not None}
    return replace(reads, words_of=reasons)


def _why_words(agent: str, sender: str, reads: PromptReads) -> str | None:
    """Why a slot can't replace this sender's text; None if it can."""
    if sender in reads.in_front:
        return None
    uses = Use(0)
    for template in reads.templates:
        uses |= template.uses.get(sender, Use(0))
    if Use.WORKED_ON in uses:
        return f"the prompt of agent {agent!r} works on the words of {sender!r} (a filter, a comparison, a loop)"
    if Use.PRINTED in uses:
        return None
    if Use.DATA in uses:
        return f"the prompt of agent {agent!r} reads fields of what {sender!r} replies, and has no slot for the reply"
    return f"the prompt of agent {agent!r} asks whether {sender!r} has replied, and has no slot for the reply"
