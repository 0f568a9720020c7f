"""Inputs and replies that an agent's templates, lists and conditions read."""

from collections.abc import Collection, Iterator

from cachegraph.agents.entry import AgentEntry, Reads
from cachegraph.agents.prompt.expression import compile_expression
from cachegraph.agents.prompt.template import compile_template
from cachegraph.channels.spec import TextEdge

from ..recipe.spec import GraphSpec

__all__ = ["agents_read", "expression_names", "steering_names", "whose_fields_are_read"]


def agents_read(spec: GraphSpec) -> dict[str, Reads]:
    """Map each agent to what it reads. A function may take every input, and takes every payload."""
    senders: dict[str, list[str]] = {name: [] for name in spec.agents}
    for edge in spec.edges:
        senders[edge.receiver].append(edge.sender)
    return {name: _reads(name, entry, senders[name], spec.inputs) for name, entry in spec.agents.items()}


def _reads(name: str, entry: AgentEntry, senders: Collection[str], inputs: Collection[str]) -> Reads:
    reads = entry.reads(name, senders, inputs)
    listed = frozenset[str]() if entry.for_each is None else expression_names(entry.for_each)
    return Reads(reads.named | listed, reads.heard | listed, reads.withheld - listed)


def steering_names(spec: GraphSpec) -> frozenset[str]:
    """Return the inputs and agents that conditions, routes and lists read."""
    sources = [source for edge in spec.edges for source in (edge.when, edge.until)]
    for entry in spec.agents.values():
        sources += [entry.for_each, *(case.when for case in entry.route)]
    return frozenset(name for source in sources if source is not None for name in expression_names(source))


def whose_fields_are_read(spec: GraphSpec) -> Iterator[tuple[str, str]]:
    """Yield (sender, receiver) where the receiver's prompt reads fields of the reply, so the sender must write it."""
    speakers = spec.speakers
    for edge in spec.edges:
        receiver = speakers.get(edge.receiver)
        if isinstance(edge, TextEdge) or receiver is None:
            continue
        templates = [compile_template(source or "", None) for source in (receiver.prompt, receiver.system)]
        if any(edge.sender in template.fields for template in templates):
            yield edge.sender, edge.receiver


def expression_names(source: str) -> frozenset[str]:
    """Return the names in an expression."""
    return compile_expression(source, None).names
