"""Which inputs and replies an agent's templates, lists and arguments name, and of which of them it gets some text."""

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from cachegraph.agents.prompt.expression import compile_expression
from cachegraph.agents.prompt.prompt_reads import prompt_reads
from cachegraph.agents.prompt.template import TemplateProblem, compile_template
from cachegraph.agents.spec import AgentEntry, AgentSpec, FunctionSpec, PauseSpec, SubgraphSpec
from cachegraph.channels.spec import TextEdge

from ..recipe.spec import GraphSpec

__all__ = ["AgentReads", "agents_read", "expression_names", "steering_names", "whose_fields_are_read"]


class AgentReads(NamedTuple):
    """What one agent names, and what it hears of that: a condition on whether a text is there is not the text."""

    named: frozenset[str]
    heard: frozenset[str]
    withheld: frozenset[str] = frozenset()  # heard, and not handed on: named in a reader's system message alone


def agents_read(spec: GraphSpec) -> dict[str, AgentReads]:
    """By agent, what it reads. A function may take every input, and takes every message."""
    senders: dict[str, list[str]] = {name: [] for name in spec.agents}
    for edge in spec.edges:
        senders[edge.receiver].append(edge.sender)
    return {name: _reads(name, entry, senders[name], spec.inputs) for name, entry in spec.agents.items()}


def _reads(name: str, entry: AgentEntry, senders: Collection[str], inputs: Mapping[str, object]) -> AgentReads:
    named = heard = withheld = frozenset[str]()
    match entry:
        case AgentSpec():
            reads = prompt_reads(name, entry, tuple(senders))
            named, heard, withheld = reads.names | reads.withheld, reads.heard, reads.withheld
        case PauseSpec(pause=source):
            question = compile_template(source, None)
            named, heard = question.names, question.heard | (frozenset(senders) - question.names)
        case SubgraphSpec(inputs=given):
            named = heard = frozenset(each for source in given.values() for each in _value_names(source))
        case FunctionSpec():
            named, heard = frozenset(inputs), frozenset(inputs) | frozenset(senders)
    listed = frozenset[str]() if entry.for_each is None else expression_names(entry.for_each)
    return AgentReads(named | listed, heard | listed, withheld - listed)


def steering_names(spec: GraphSpec) -> frozenset[str]:
    """The inputs and agents that conditions, routes and lists read."""
    sources = [each for edge in spec.edges for each in (edge.when, edge.until)]
    for entry in spec.agents.values():
        sources += [entry.for_each, *(case.when for case in entry.route)]
    return frozenset(name for source in sources if source is not None for name in expression_names(source))


def whose_fields_are_read(spec: GraphSpec) -> Iterator[tuple[str, str]]:
    """(sender, receiver) where the receiver's prompt reads fields of the reply: they are there once it is written."""
    for edge in spec.edges:
        receiver = spec.agents[edge.receiver]
        if isinstance(edge, TextEdge) or not isinstance(receiver, AgentSpec):
            continue
        templates = [compile_template(each or "", None) for each in (receiver.prompt, receiver.system)]
        if any(edge.sender in template.fields for template in templates):
            yield edge.sender, edge.receiver


def expression_names(source: str) -> frozenset[str]:
    """The names in an expression."""
    return compile_expression(source, None).names


def _value_names(source: str) -> frozenset[str]:
    """A sub-graph's input is one expression in braces, or a template."""
    try:
        if source.strip().startswith("{{"):
            return expression_names(source)
    except TemplateProblem:
        pass
    return compile_template(source, None).names
