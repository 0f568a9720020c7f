"""Both models' prefilled prompts of a fuser in training, in LRU caches."""

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
    """Caches up to `cache_bytes` for each model. `zero` replaces every sharer cache by zeros.

    Each layer of a cache is (1, kv_heads, positions, head_dim).
    """

    def __init__(self, pair: Pair, fuser: Fuser, *, zero: bool, cache_bytes: int):
        self._pair = pair
        self._fuser = fuser
        self._zero = zero
        self._cache_bytes = cache_bytes
        self._of_sharer: LRUCache[KV] = LRUCache(cache_bytes, lambda kv: kv.nbytes)
        self._of_receiver: LRUCache[KV] = LRUCache(cache_bytes, lambda kv: kv.nbytes)

    def sharer(self, shared_prompts: Sequence[SharedPrompt]) -> list[KV | None]:
        """The sharer's caches as the fuser reads them: `sharer_depth` layers, unrotated if the card says so.

        None where the sharer reads nothing.
        """
        sharers: list[SharerPrompt] = [shared_prompt.sharers[0] for shared_prompt in shared_prompts]
        full = [prompt for prompt in sharers if prompt.ids]

        def make(missing: list[int]) -> list[KV]:
            return [kv for index in missing for kv in self._read_sharer([full[index]])]

        kvs = iter(self._of_sharer.get([_key(prompt.ids, prompt.positions) for prompt in full], make))
        caches = [next(kvs) if prompt.ids else None for prompt in sharers]
        return [kv if kv is None or not self._zero else _zeros(kv) for kv in caches]

    def _read_sharer(self, prompts: Sequence[SharerPrompt]) -> list[KV]:
        model = self._pair.sharer.engine.model
        depth = self._fuser.sharer_depth or 1  # 0: all gates are closed, so no layer is read
        ids, positions = [prompt.ids for prompt in prompts], [prompt.positions for prompt in prompts]
        kvs = [compact(kv) for kv in prefill(model, ids, positions=positions, layers=depth)]
        return [model.rotation.unrotated(kv) for kv in kvs] if self._fuser.card.rope == "unrotated" else kvs

    def own(self, shared_prompts: Sequence[SharedPrompt]) -> list[KV]:
        """The receiver's own cache of each prompt's first stretch."""

        def make(missing: list[int]) -> list[KV]:
            return [kv for index in missing for kv in self._read_own([shared_prompts[index]])]

        return self._of_receiver.get([_key(*_first(shared_prompt)) for shared_prompt in shared_prompts], make)

    def _read_own(self, shared_prompts: Sequence[SharedPrompt]) -> list[KV]:
        ids, positions = zip(*map(_first, shared_prompts), strict=True)
        return [compact(kv) for kv in prefill(self._pair.receiver.engine.model, ids, positions=positions)]

    def prepare(self, shared_prompts: Sequence[SharedPrompt], report: ReportPhase) -> None:
        """Prefill all prompts in batches, which takes a third of the time.

        Batches are always the same, since batching changes the last bits of a cache, and a resumed training must get
        the same ones. If the cache has no room for all prompts, each is prefilled alone when it is needed.
        """
        shared_prompts = [shared_prompt for shared_prompt in shared_prompts if shared_prompt.sharers[0].ids]
        if not self._has_room(shared_prompts):
            return
        for start in range(0, len(shared_prompts), PREPARED_AT_ONCE):
            report("reading prompts", start, len(shared_prompts))
            part = shared_prompts[start : start + PREPARED_AT_ONCE]
            sharers = [shared_prompt.sharers[0] for shared_prompt in part]
            keys = [_key(prompt.ids, prompt.positions) for prompt in sharers]
            self._of_sharer.get(keys, lambda missing, of=sharers: self._read_sharer([of[i] for i in missing]))  # type: ignore[misc]
            keys = [_key(*_first(shared_prompt)) for shared_prompt in part]
            self._of_receiver.get(keys, lambda missing, of=part: self._read_own([of[i] for i in missing]))  # type: ignore[misc]
        report("reading prompts", len(shared_prompts), len(shared_prompts))

    def _has_room(self, shared_prompts: Sequence[SharedPrompt]) -> bool:
        """Whether all prompts fit in the caches, estimated from the bytes of a position in all layers."""
        tokens = (
            sum(len(_first(shared_prompt)[0]) for shared_prompt in shared_prompts),
            sum(len(shared_prompt.sharers[0].ids) for shared_prompt in shared_prompts),
        )
        for end, count in zip((self._pair.receiver, self._pair.sharer), tokens, strict=True):
            model = end.engine.model
            width = sum(shape.key_width + shape.value_width for shape in model.info.shapes)
            if count * width * torch.finfo(model.dtype).bits // 8 > self._cache_bytes:
                return False
        return True

    def features(self, shared_prompts: Sequence[SharedPrompt]) -> list[Tensor]:
        """The bottleneck's inputs for each prompt: (positions, features) at the aligned sharer positions, in order."""
        assert isinstance(self._fuser, BottleneckFuser)
        features = []
        for shared_prompt, kv in zip(shared_prompts, self.sharer(shared_prompts), strict=True):
            assert kv is not None  # every example has aligned positions
            positions = torch.cat([at.pairs[0].sharer for at in shared_prompt.stretches if at.pairs])
            features.append(self._fuser.features(kv.select(positions).layers)[0].cpu())
        return features

    def sizes(self, shared_prompts: Sequence[SharedPrompt]) -> Tensor:
        """(outputs,): for each output of a bottleneck, the root mean square of the receiver's own keys or values in
        that layer, over the prompts' first stretches."""
        caches = self.own(shared_prompts)
        blocks = []
        for layer in zip(*(kv.layers for kv in caches), strict=True):
            for side in zip(*layer, strict=True):
                squares = torch.stack([tensor.float().square().mean() for tensor in side])
                width = side[0].shape[1] * side[0].shape[3]
                blocks.append(squares.mean().sqrt().expand(width))
        return torch.cat(blocks).cpu()


def _first(shared_prompt: SharedPrompt) -> tuple[Sequence[int], Tensor | None]:
    """Tokens and positions of the first stretch."""
    start, end, _ = shared_prompt.stretches[0]
    return shared_prompt.ids[start:end], None if shared_prompt.positions is None else shared_prompt.positions[start:end]


def _key(ids: Sequence[int], positions: Tensor | None) -> Hashable:
    return tuple(ids), None if positions is None else tuple(positions.tolist())


def _zeros(kv: KV) -> KV:
    return KV(tuple(LayerKV(torch.zeros_like(k), torch.zeros_like(v)) for k, v in kv.layers), kv.positions)
