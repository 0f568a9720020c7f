"""Build the `Peer` of an agent that has a model, before or after the model is loaded. No torch."""

from typing import TYPE_CHECKING

from cachegraph.channels.peer import Peer

from .prompt.prompt_reads import PromptReads
from .spec import AgentSpec

if TYPE_CHECKING:
    from cachegraph.engine.engine import Engine

__all__ = ["model_peer"]


def model_peer(
    agent: str,
    spec: AgentSpec,
    reads: PromptReads,
    model_name: str,
    engine: "Engine | None" = None,
    why_no_cache: str | None = None,
    source: str | None = None,
) -> Peer:
    """Build the peer of an agent whose templates read `reads`. `engine` is None before loading.

    An item of a list is a different text in every turn and agent, so no two agents read the same item.
    """
    item = frozenset([spec.item] if spec.for_each is not None else [])
    return Peer(
        agent,
        model_name,
        engine,
        why_no_cache,
        reads_only=spec.generate.max_new_tokens == 0,
        reads=reads.names - item | {f"{agent}[{name}]" for name in reads.names & item},
        holds=reads.whole - item,
        source=source,
        words_of=reads.words_of,
        own_words=reads.prompt.own_words,
    )
