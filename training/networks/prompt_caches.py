"""Both models' caches of a fuser's prompts: computed once, kept while there is room."""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from cachegraph.channels.cache.shared_prompt import SharedPrompt, SharerPrompt
from cachegraph.channels.fusers.networks.base import Fuser
from cachegraph.channels.fusers.networks.bottleneck import BottleneckFuser
from cachegraph.engine.kv.cache import KV, LayerKV

from ..pair import Pair
from ..prefill import LRUCache, compact, prefill
from .learner import ReportPhase

__all__ = ["PromptCaches"]

PREPARED_AT_ONCE = 64  # prompts


class PromptCaches:
    """Up to `cache_bytes` bytes for each model. `zero` puts zeros in the place of every sharer's cache."""

    def __init__(self, pair: Pair, fuser: Fuser, *, zero: bool, cache_bytes: int):
        self._pair = pair
        self._fuser = fuser
        self._zero = zero
        self._cache_bytes = cache_bytes
        self._of_sharer: LRUCache[KV] = LRUCache(cache_bytes, lambda kv: kv.nbytes)
        self._of_receiver: LRUCache[KV] = LRUCache(cache_bytes, lambda kv: kv.nbytes)

    def sharer(self, readings: Sequence[SharedPrompt]) -> list[KV | None]:
        """As the fuser reads them: as deep, and unrotated where its card says so. None: the sharer reads nothing."""
        sharers: list[SharerPrompt] = [reading.sharers[0] for reading in readings]
        full = [each for each in sharers if each.ids]

        def make(missing: list[int]) -> list[KV]:
            return [kv for index in missing for kv in self._read_sharer([full[index]])]

        found = iter(self._of_sharer.get([_key(each.ids, each.positions) for each in full], make))
        caches = [next(found) if each.ids else None for each in sharers]
        return [kv if kv is None or not self._zero else _zeros(kv) for kv in caches]

    def _read_sharer(self, prompts: Sequence[SharerPrompt]) -> list[KV]:
        model = self._pair.sharer.engine.model
        depth = self._fuser.sharer_depth or 1  # 0: all gates are closed, and nothing is looked at
        ids, positions = [each.ids for each in prompts], [each.positions for each in prompts]
        found = [compact(kv) for kv in prefill(model, ids, positions=positions, layers=depth)]
        return [model.rotation.unrotated(kv) for kv in found] if self._fuser.card.rope == "unrotated" else found

    def own(self, readings: Sequence[SharedPrompt]) -> list[KV]:
        """The receiver's own cache of each reading's first stretch."""

        def make(missing: list[int]) -> list[KV]:
            return [kv for index in missing for kv in self._read_own([readings[index]])]

        return self._of_receiver.get([_key(*_first(each)) for each in readings], make)

    def _read_own(self, readings: Sequence[SharedPrompt]) -> list[KV]:
        ids, positions = zip(*map(_first, readings), strict=True)
        return [compact(kv) for kv in prefill(self._pair.receiver.engine.model, ids, positions=positions)]

    def prepare(self, readings: Sequence[SharedPrompt], report: ReportPhase) -> None:
        """Many prompts at once, which takes a third of the time. Always the same ones, since company changes last bits
        and a resumed training has to have those of the first. Where there is no room for all of them each is read when
        it is asked for, alone."""
        readings = [reading for reading in readings if reading.sharers[0].ids]
        if not self._has_room(readings):
            return
        for start in range(0, len(readings), PREPARED_AT_ONCE):
            report("reading prompts", start, len(readings))
            part = readings[start : start + PREPARED_AT_ONCE]
            sharers = [each.sharers[0] for each in part]
            keys = [_key(each.ids, each.positions) for each in sharers]
            self._of_sharer.get(keys, lambda missing, of=sharers: self._read_sharer([of[i] for i in missing]))  # type: ignore[misc]
            keys = [_key(*_first(each)) for each in part]
            self._of_receiver.get(keys, lambda missing, of=part: self._read_own([of[i] for i in missing]))  # type: ignore[misc]
        report("reading prompts", len(readings), len(readings))

    def _has_room(self, readings: Sequence[SharedPrompt]) -> bool:
        """By an estimate: a position's bytes in both models, all layers."""
        tokens = sum(len(_first(each)[0]) for each in readings), sum(len(each.sharers[0].ids) for each in readings)
        for end, count in zip((self._pair.receiver, self._pair.sharer), tokens, strict=True):
            model = end.engine.model
            width = sum(shape.key_width + shape.value_width for shape in model.info.shapes)
            if count * width * torch.finfo(model.dtype).bits // 8 > self._cache_bytes:
                return False
        return True

    def features(self, readings: Sequence[SharedPrompt]) -> list[Tensor]:
        """What a bottleneck reads of each prompt, at the sharer positions that stand for a receiver's, in the order of
        the prompt: (positions, features)."""
        assert isinstance(self._fuser, BottleneckFuser)
        found = []
        for reading, kv in zip(readings, self.sharer(readings), strict=True):
            assert kv is not None  # a lesson shares something
            there = torch.cat([at.pairs[0].sharer for at in reading.stretches if at.pairs])
            found.append(self._fuser.features(kv.select(there).layers)[0].cpu())
        return found

    def sizes(self, readings: Sequence[SharedPrompt]) -> Tensor:
        """How large the receiver's own keys and values are: by output of a bottleneck, the root mean square of its
        layer's keys or values in the first stretches, (outputs,)."""
        caches = self.own(readings)
        blocks = []
        for layer in zip(*(kv.layers for kv in caches), strict=True):
            for side in zip(*layer, strict=True):
                squares = torch.stack([each.float().square().mean() for each in side])
                width = side[0].shape[1] * side[0].shape[3]
                blocks.append(squares.mean().sqrt().expand(width))
        return torch.cat(blocks).cpu()


def _first(reading: SharedPrompt) -> tuple[Sequence[int], Tensor | None]:
    """Tokens and positions of its first stretch."""
    start, end, _ = reading.stretches[0]
    return reading.ids[start:end], None if reading.positions is None else reading.positions[start:end]


def _key(ids: Sequence[int], positions: Tensor | None) -> Hashable:
    return tuple(ids), None if positions is None else tuple(positions.tolist())


def _zeros(kv: KV) -> KV:
    return KV(tuple(LayerKV(torch.zeros_like(k), torch.zeros_like(v)) for k, v in kv.layers), kv.positions)
