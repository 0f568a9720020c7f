"""Translate a sharer's KV entries for a receiver of another model."""

from collections.abc import Iterable
from dataclasses import dataclass

from cachegraph.engine.kv.cache import KV
from cachegraph.engine.model.load import LoadedModel

from ..fusers.networks.translator import Translator
from .align import Aligner

__all__ = ["Translation"]


@dataclass(frozen=True, eq=False)
class Translation:
    """Translates one model's cache for another: the network, the sharer that unrotates keys, and both tokenizers."""

    translator: Translator
    sharer: LoadedModel
    backwards: Aligner  # from the sharer's tokens to the receiver's

    def kv(self, kv: KV) -> KV:
        """Translate each entry into one receiver entry with unrotated keys, at position 0: (1, kv_heads, positions,
        head_dim).
        """
        still = self.sharer.rotation.unrotated(kv)
        return KV(self.translator.translate(still.layers), still.positions)

    def ids(self, ids: Iterable[int]) -> list[int]:
        """Map each sharer token to the last of the receiver tokens that spell it."""
        return [self.backwards.candidates(token)[-1] for token in ids]
