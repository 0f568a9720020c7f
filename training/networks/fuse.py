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
from cachegraph.channels.cache.shared_prompt import Pairs, SharedPrompt, SharerPrompt
from cachegraph.channels.fusers.files.card import Card
from cachegraph.channels.fusers.files.weights import save_fuser
from cachegraph.channels.fusers.networks.base import Fuser
from cachegraph.channels.fusers.networks.bottleneck import BottleneckFuser
from cachegraph.engine.kv.cache import KV, LayerKV, RowCache, concat
from cachegraph.engine.model.forward import Row, forward

from ..caches import Shelf, compact, read
from ..data.dataset import TrainingExample
from ..data.examples import FuseLesson, Replies, fuse_lesson
from ..data.packed_replies import Branch, Tree
from ..pair import Pair
from ..spec import ReplyRidgeSpec
from .learner import Learner, Report
from .reply_ridge import fit_bottleneck

__all__ = ["FuseLearner"]

PREPARED_AT_ONCE = 64  # lessons


class _Shared(NamedTuple):
    """A row of the receiver's whose stretch the sharer has read too."""

    row: int
    cache: KV
    pairs: Pairs


class FuseLearner(Learner[FuseLesson]):
    """Holds the fuser; `zero` feeds it zeros in the place of every sharer's cache.

    What the frozen models make of a prompt is kept for the next time, up to `shelf` bytes for each of the two.
    """

    def __init__(
        self,
        pair: Pair,
        fuser: Fuser,
        aligner: Aligner | None,
        *,
        zero: bool,
        ridge: ReplyRidgeSpec | None = None,
        shelf: int = 0,
    ):
        self._pair = pair
        self._fuser = fuser
        self._aligner = aligner
        self._zero = zero
        self._ridge = ridge
        self._shelf = shelf
        self._sharer_caches: Shelf[KV] = Shelf(shelf, lambda kv: kv.nbytes)
        self._own_caches: Shelf[KV] = Shelf(shelf, lambda kv: kv.nbytes)
        self.module = fuser.module

    def lesson(self, example: TrainingExample) -> FuseLesson:
        return fuse_lesson(self._pair, example, self._fuser, self._aligner)

    def replies(self, lesson: FuseLesson) -> Replies:
        return lesson.replies

    def group(self, lesson: FuseLesson) -> Hashable:
        return lesson.group

    def prompt_tokens(self, lessons: Sequence[FuseLesson]) -> int:
        return sum(len(lesson.reading.ids) + len(lesson.reading.sharers[0].ids) for lesson in lessons)

    def anneal(self, step: int) -> None:
        self._fuser.anneal(step)

    def start(self, lessons: Sequence[FuseLesson], report: Report) -> None:
        self.fit([lesson.reading for lesson in lessons], [lesson.replies for lesson in lessons], report)

    def fit(self, readings: Sequence[SharedPrompt], replies: Sequence[Replies], report: Report) -> None:
        """The closed-form start from prompts and what follows them; nothing where the fuser has none."""
        if isinstance(self._fuser, BottleneckFuser):
            model = self._pair.receiver.engine.model
            fit_bottleneck(self, self._fuser.network, model, readings, replies, self._ridge, report)

    def rates(self) -> Mapping[Tensor, float]:
        """Of a bottleneck's first layer, as in a translator: its inputs are a position's whole cache."""
        if not isinstance(self._fuser, BottleneckFuser):
            return {}
        weight = self._fuser.network.down.weight
        return {weight: min(1.0, weight.shape[0] / weight.shape[1])}

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
        """As the fuser reads them: as deep, and unrotated where its card says so. None: the sharer reads nothing."""
        sharers: list[SharerPrompt] = [reading.sharers[0] for reading in readings]
        full = [each for each in sharers if each.ids]

        def make(missing: list[int]) -> list[KV]:
            return [kv for index in missing for kv in self._read_sharer([full[index]])]

        found = iter(self._sharer_caches.get([_key(each.ids, each.positions) for each in full], make))
        caches = [next(found) if each.ids else None for each in sharers]
        return [kv if kv is None or not self._zero else _zeros(kv) for kv in caches]

    def _read_sharer(self, prompts: Sequence[SharerPrompt]) -> list[KV]:
        model = self._pair.sharer.engine.model
        depth = self._fuser.sharer_depth or 1  # 0: all gates are closed, and nothing is looked at
        ids, positions = [each.ids for each in prompts], [each.positions for each in prompts]
        found = [compact(kv) for kv in read(model, ids, positions=positions, layers=depth)]
        return [model.rotation.unrotated(kv) for kv in found] if self._fuser.card.rope == "unrotated" else found

    def own_caches(self, readings: Sequence[SharedPrompt]) -> list[KV]:
        """The receiver's own cache of each reading's first stretch."""

        def make(missing: list[int]) -> list[KV]:
            return [kv for index in missing for kv in self._read_own([readings[index]])]

        return self._own_caches.get([_key(*_first(each)) for each in readings], make)

    def _read_own(self, readings: Sequence[SharedPrompt]) -> list[KV]:
        ids, positions = zip(*map(_first, readings), strict=True)
        return [compact(kv) for kv in read(self._pair.receiver.engine.model, ids, positions=positions)]

    def prepare(self, lessons: Sequence[FuseLesson], report: Report) -> None:
        """Many prompts at once, which takes a third of the time. Always the same ones, since company changes last bits
        and a resumed training has to have those of the first. Where there is no room for all of them each is read when
        it is asked for, alone."""
        readings = [lesson.reading for lesson in lessons if lesson.reading.sharers[0].ids]
        if not self._has_room(readings):
            return
        for start in range(0, len(readings), PREPARED_AT_ONCE):
            report("reading prompts", start, len(readings))
            part = readings[start : start + PREPARED_AT_ONCE]
            sharers = [each.sharers[0] for each in part]
            keys = [_key(each.ids, each.positions) for each in sharers]
            self._sharer_caches.get(keys, lambda missing, of=sharers: self._read_sharer([of[i] for i in missing]))  # type: ignore[misc]
            keys = [_key(*_first(each)) for each in part]
            self._own_caches.get(keys, lambda missing, of=part: self._read_own([of[i] for i in missing]))  # type: ignore[misc]
        report("reading prompts", len(readings), len(readings))

    def _has_room(self, readings: Sequence[SharedPrompt]) -> bool:
        """By an estimate: a position's bytes in both models, all layers."""
        tokens = sum(len(_first(each)[0]) for each in readings), sum(len(each.sharers[0].ids) for each in readings)
        for end, count in zip((self._pair.receiver, self._pair.sharer), tokens, strict=True):
            model = end.engine.model
            width = sum(shape.key_width + shape.value_width for shape in model.info.shapes)
            if count * width * torch.finfo(model.dtype).bits // 8 > self._shelf:
                return False
        return True

    def features(self, readings: Sequence[SharedPrompt]) -> list[Tensor]:
        """What a bottleneck reads of each prompt, at the sharer positions that stand for a receiver's, in the order of
        the prompt: (positions, features)."""
        assert isinstance(self._fuser, BottleneckFuser)
        found = []
        for reading, kv in zip(readings, self.sharer_caches(readings), strict=True):
            assert kv is not None  # a lesson shares something
            there = torch.cat([at.pairs[0].sharer for at in reading.stretches if at.pairs])
            found.append(self._fuser.features(kv.select(there).layers)[0].cpu())
        return found

    def sizes(self, readings: Sequence[SharedPrompt]) -> Tensor:
        """How large the receiver's own keys and values are: by output of a bottleneck, the root mean square of its
        layer's keys or values in the first stretches, (outputs,)."""
        caches = self.own_caches(readings)
        blocks = []
        for layer in zip(*(kv.layers for kv in caches), strict=True):
            for side in zip(*layer, strict=True):
                squares = torch.stack([each.float().square().mean() for each in side])
                width = side[0].shape[1] * side[0].shape[3]
                blocks.append(squares.mean().sqrt().expand(width))
        return torch.cat(blocks).cpu()

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
                owns = self.own_caches([readings[i] for i in members])
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


def _first(reading: SharedPrompt) -> tuple[Sequence[int], Tensor | None]:
    """Tokens and positions of its first stretch."""
    start, end, _ = reading.stretches[0]
    return reading.ids[start:end], None if reading.positions is None else reading.positions[start:end]


def _key(ids: Sequence[int], positions: Tensor | None) -> Hashable:
    return tuple(ids), None if positions is None else tuple(positions.tolist())


def _starts(lengths: Iterable[int]) -> list[int]:
    return [0, *accumulate(lengths)][:-1]


def _zeros(kv: KV) -> KV:
    return KV(tuple(LayerKV(torch.zeros_like(k), torch.zeros_like(v)) for k, v in kv.layers), kv.positions)
