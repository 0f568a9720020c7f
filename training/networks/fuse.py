"""A fuser in training: the receiver's own cache, corrected where both models have read the same text."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from cachegraph.channels.cache.align import Aligner
from cachegraph.channels.cache.apply_fuser import FuserInput, fuse_layers
from cachegraph.channels.cache.fused_prefill import receiver_rope
from cachegraph.channels.cache.shared_prompt import Pairs, SharedPrompt
from cachegraph.channels.fusers.files.card import Card
from cachegraph.channels.fusers.files.weights import save_fuser
from cachegraph.channels.fusers.networks.base import Fuser
from cachegraph.channels.fusers.networks.bottleneck import BottleneckFuser
from cachegraph.engine.kv.cache import KV, LayerKV, RowCache, concat
from cachegraph.engine.model.forward import Row, forward

from ..data.dataset import TrainingExample
from ..data.examples import FuseExample, Replies, fuse_example
from ..data.packed_replies import Branch, Tree
from ..pair import Pair
from ..spec import ReplyRidgeSpec
from .learner import Learner, ReportPhase
from .prompt_caches import PromptCaches
from .reply_ridge import fit_bottleneck

__all__ = ["FuseLearner"]


class _Shared(NamedTuple):
    """A row of the receiver's whose stretch the sharer has read too."""

    row: int
    cache: KV
    pairs: Pairs


class FuseLearner(Learner[FuseExample]):
    """Holds the fuser; `zero` feeds it zeros in the place of every sharer's cache. `cache_bytes`: see PromptCaches."""

    def __init__(
        self,
        pair: Pair,
        fuser: Fuser,
        aligner: Aligner | None,
        *,
        zero: bool,
        ridge: ReplyRidgeSpec | None = None,
        cache_bytes: int = 0,
    ):
        self._pair = pair
        self._fuser = fuser
        self._aligner = aligner
        self._ridge = ridge
        self.caches = PromptCaches(pair, fuser, zero=zero, cache_bytes=cache_bytes)
        self.module = fuser.module

    def encode(self, example: TrainingExample) -> FuseExample:
        return fuse_example(self._pair, example, self._fuser, self._aligner)

    def replies(self, example: FuseExample) -> Replies:
        return example.replies

    def group(self, example: FuseExample) -> Hashable:
        return example.group

    def prompt_tokens(self, examples: Sequence[FuseExample]) -> int:
        return sum(len(example.reading.ids) + len(example.reading.sharers[0].ids) for example in examples)

    def anneal(self, step: int) -> None:
        self._fuser.anneal(step)

    def prepare(self, examples: Sequence[FuseExample], report: ReportPhase) -> None:
        self.caches.prepare([example.reading for example in examples], report)

    def start(self, examples: Sequence[FuseExample], report: ReportPhase) -> None:
        self.fit([example.reading for example in examples], [example.replies for example in examples], report)

    def fit(self, readings: Sequence[SharedPrompt], replies: Sequence[Replies], report: ReportPhase) -> None:
        """The closed-form start from prompts and what follows them; nothing where the fuser has none."""
        if isinstance(self._fuser, BottleneckFuser):
            model = self._pair.receiver.engine.model
            fit_bottleneck(self.caches, self._fuser.network, model, readings, replies, self._ridge, report)

    def learning_rate_scales(self) -> Mapping[Tensor, float]:
        """Of a bottleneck's first layer, as in a translator: its inputs are a position's whole cache."""
        if not isinstance(self._fuser, BottleneckFuser):
            return {}
        weight = self._fuser.network.down.weight
        return {weight: min(1.0, weight.shape[0] / weight.shape[1])}

    def trees(
        self, examples: Sequence[FuseExample], others: Sequence[FuseExample] | None = None, right_only: bool = False
    ) -> tuple[list[Tree], list[int]]:
        readings = [example.reading for example in examples]
        if others is not None:
            readings = [mine.mismatched(other) for mine, other in zip(examples, others, strict=True)]
        rows = self.fused_rows(readings, self.caches.sharer(readings))
        trees = []
        for example, reading, segments in zip(examples, readings, rows, strict=True):
            replies = example.replies.alone() if right_only else example.replies
            positions = None if reading.positions is None else reading.positions[reading.end :]
            trees.append(Tree(segments, [Branch(reading.ids[reading.end :], replies, positions)]))
        return trees, list(range(len(examples)))

    def fused_rows(
        self,
        readings: Sequence[SharedPrompt],
        caches: Sequence[KV | None],
        grafts: Sequence[tuple[int, KV]] | None = None,
    ) -> list[tuple[KV, ...]]:
        """Stretch by stretch, all readings' at once; what comes behind a correction sees it, with its gradients.

        `grafts` has an entry a reading, which has room for it: what stands in front of one of its tokens.
        """
        model = self._pair.receiver.engine.model
        segments: list[tuple[KV, ...]] = [()] * len(readings)
        for index in range(max((len(reading.stretches) for reading in readings), default=0)):
            members = [i for i, reading in enumerate(readings) if index < len(reading.stretches)]
            rows = []
            for i in members:
                reading, (start, end, _) = readings[i], readings[i].stretches[index]
                if grafts is not None and grafts[i][0] == start:
                    segments[i] = (*segments[i], grafts[i][1])
                positions = None if reading.positions is None else reading.positions[start:end]
                rows.append(Row(reading.ids[start:end], RowCache(segments[i]), "none", positions))
            if any(segments):
                forward(model.network, model.info, rows)
                owns = [row.cache.tail() for row in rows]
            else:  # nothing that learns stands in front
                owns = self.caches.own([readings[i] for i in members])
            shared = [
                _Shared(place, cache, pairs[0])
                for place, i in enumerate(members)
                if (pairs := readings[i].stretches[index].pairs) and (cache := caches[i]) is not None
            ]
            for i, own in zip(members, self._corrected(owns, shared), strict=True):
                segments[i] = (*segments[i], own)
        return segments

    def _corrected(self, owns: list[KV], shared: Sequence[_Shared]) -> list[KV]:
        """Projectors work position by position, so all rows stand side by side and each layer is computed once."""
        if not shared:
            return owns
        mine, theirs = concat([owns[each.row] for each in shared]), concat([each.cache for each in shared])
        starts = [_starts(len(owns[each.row]) for each in shared), _starts(len(each.cache) for each in shared)]
        here = torch.cat([each.pairs.receiver + start for each, start in zip(shared, starts[0], strict=True)])
        there = torch.cat([each.pairs.sharer + start for each, start in zip(shared, starts[1], strict=True)])
        rope = receiver_rope(self._fuser, self._pair.receiver.engine, mine.positions)
        fused = fuse_layers(mine.layers, [FuserInput(self._fuser, theirs.layers, (here, there), rope=rope)])
        joined = KV(tuple(LayerKV(*layer) for layer in fused.layers), mine.positions)
        corrected = list(owns)
        for each, start in zip(shared, starts[0], strict=True):
            corrected[each.row] = joined.select(slice(start, start + len(owns[each.row])))
        return corrected

    def save(self, folder: Path, card: dict[str, object], dtype: torch.dtype) -> Card:
        full = Card.model_validate({**self._fuser.card.model_dump(), **card})
        return save_fuser(replace(self._fuser.to("cpu", dtype), card=full), folder)


def _starts(lengths: Iterable[int]) -> list[int]:
    return [0, *accumulate(lengths)][:-1]
