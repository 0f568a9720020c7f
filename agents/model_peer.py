"""An agent with a model as the channels see it, before its model is loaded or after. No torch."""

from typing import Any

from cachegraph.channels.peer import Peer

from .prompt.prompt_reads import PromptReads
from .spec import AgentSpec

__all__ = ["model_peer"]


def model_peer(
    agent: str,
    spec: AgentSpec,
    reads: PromptReads,
    model_name: str,
    model: Any = None,
    why_no_cache: str | None = None,
    source: str | None = None,
) -> Peer:
    """The peer of an agent whose templates read `reads`. `model` is its engine, or None while nothing is loaded.

    An item of a list is another text in every turn, and for every agent, whatever its name is.
    """
    item = frozenset([spec.item] if spec.for_each is not None else [])
    return Peer(
        agent,
        model_name,
        model,
        why_no_cache,
        reads_only=spec.generate.max_new_tokens == 0,
        reads=reads.names - item | {f"{agent}[{name}]" for name in reads.names & item},
        holds=reads.whole - item,
        source=source,
        words_of=reads.words_of,
        own_words=reads.prompt.own_words,
    )
