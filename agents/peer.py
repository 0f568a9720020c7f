"""An agent with a model as the channels see it, before its model is loaded or after. No torch."""

from typing import Any

from cachegraph.channels.base import Peer

from .prompt_reads import PromptReads
from .spec import AgentSpec

__all__ = ["model_peer"]


def model_peer(
    agent: str,
    spec: AgentSpec,
    reads: PromptReads,
    model_name: str,
    model: Any = None,
    why_no_cache: str | None = None,
) -> Peer:
    """The peer of an agent whose templates read `reads`. `model` is its engine, or None while nothing is loaded."""
    return Peer(
        agent,
        model_name,
        model,
        why_no_cache,
        reads_only=spec.generate.max_new_tokens == 0,
        reads=reads.names,
        words_of=reads.words_of,
        own_words=reads.prompt.own_words,
    )
