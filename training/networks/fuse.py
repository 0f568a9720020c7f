"""A fuser in training: the receiver's own cache, corrected where both models have read the same text."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from cachegraph.channels.cache.align import Aligner
from cachegraph.channels.cache.apply_fuser import FuserInput, fuse_layers
from cachegraph.channels.cache.fused_prefill import receiver_rope
from cachegraph.channels.cache.shared_prompt import Pairs, SharedPrompt, SharerPrompt
from cachegraph.channels.fusers.files.card import Card
from cachegraph.channels.fusers.files.weights import save_fuser
from cachegraph.channels.fusers.networks.base import Fuser
from cachegraph.engine.kv.cache import KV, LayerKV, RowCache, concat
from cachegraph.engine.model.forward import Row, forward

from ..caches import read
from ..data.dataset import Example
from ..data.examples import FuseLesson, Replies, fuse_lesson
from ..data.packed_replies import Branch, Tree
from ..pair import Pair
from .learner import Learner

__all__ = ["FuseLearner"]


class _Shared(NamedTuple):
    """A row of the receiver's whose stretch the sharer has read too."""

    row: int
    cache: KV
    pairs: Pairs


class FuseLearner(Learner[FuseLesson]):
    """Holds the fuser; `zero` feeds it zeros in the place of every sharer's cache."""

    def __init__(self, pair: Pair, fuser: Fuser, aligner: Aligner | None, *, zero: bool):
        self._pair = pair
        self._fuser = fuser
        self._aligner = aligner
        self._zero = zero
        self.module = nn.ModuleList(fuser.projectors.values())

    def lesson(self, example: Example) -> FuseLesson:
        return fuse_lesson(self._pair, example, self._fuser, self._aligner)

    def replies(self, lesson: FuseLesson) -> Replies:
        return lesson.replies

    def group(self, lesson: FuseLesson) -> Hashable:
        return lesson.group

    def prompt_tokens(self, lessons: Sequence[FuseLesson]) -> int:
        return sum(len(lesson.reading.ids) + len(lesson.reading.sharers[0].ids) for lesson in lessons)

    def anneal(self, step: int) -> None:
        for projector in self._fuser.projectors.values():
            projector.anneal(step)

    def trees(
        self, lessons: Sequence[FuseLesson], others: Sequence[FuseLesson] | None = None, right_only: bool = False
    ) -> tuple[list[Tree], list[int]]:
        readings = [lesson.reading for lesson in lessons]
        if others is not None:
            readings = [mine.mismatched(other) for mine, other in zip(lessons, others, strict=True)]
        rows = self.fused_rows(readings, self.sharer_caches(readings))
        trees = []
        for lesson, reading, segments in zip(lessons, readings, rows, strict=True):
            replies = lesson.replies.alone() if right_only else lesson.replies
            positions = None if reading.positions is None else reading.positions[reading.end :]
            trees.append(Tree(segments, [Branch(reading.ids[reading.end :], replies, positions)]))
        return trees, list(range(len(lessons)))

    def sharer_caches(self, readings: Sequence[SharedPrompt]) -> list[KV | None]:
        """None where the sharer has nothing to read."""
        sharers: list[SharerPrompt] = [reading.sharers[0] for reading in readings]
        full = [each for each in sharers if each.ids]
        model = self._pair.sharer.engine.model
        ids, at = [each.ids for each in full], [each.positions for each in full]
        depth = self._fuser.sharer_depth or 1  # 0: all gates are closed, and nothing is looked at
        found = iter(read(model, ids, positions=at, layers=depth))
        caches = [next(found) if each.ids else None for each in sharers]
        return [kv if kv is None or not self._zero else _zeros(kv) for kv in caches]

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
            forward(model.network, model.info, rows)
            owns = [row.cache.tail() for row in rows]
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
        if self._fuser.card.rope == "unrotated":
            theirs = self._pair.sharer.engine.model.rotation.unrotated(theirs)
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


def _zeros(kv: KV) -> KV:
    return KV(tuple(LayerKV(torch.zeros_like(k), torch.zeros_like(v)) for k, v in kv.layers), kv.positions)
