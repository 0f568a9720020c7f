"""Translate a sharer's entries into those of a receiver with another model."""

from collections.abc import Iterable
from dataclasses import dataclass

from cachegraph.engine.kv.cache import KV
from cachegraph.engine.model.load import LoadedModel

from ..fusers.networks.translator import Translator
from .align import Aligner

__all__ = ["Translation"]


@dataclass(frozen=True, eq=False)
class Translation:
    """What turns one model's cache into another's: the network, whose keys it unrotates, and both tokenizers."""

    translator: Translator
    sharer: LoadedModel
    backwards: Aligner  # from the sharer's tokens to the receiver's

    def kv(self, kv: KV) -> KV:
        """One receiver entry a sharer entry, at position 0: keys as they are before RoPE."""
        still = self.sharer.rotation.unrotated(kv)
        return KV(self.translator.translate(still.layers), still.positions)

    def ids(self, ids: Iterable[int]) -> list[int]:
        """For each sharer token the last of the receiver tokens that spell it: what the entry stands for."""
        return [self.backwards.candidates(token)[-1] for token in ids]
