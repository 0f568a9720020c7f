"""A translator and a fuser in training for one edge: what only the sharer has read is grafted, the rest is fused."""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from cachegraph.channels.cache.shared_prompt import make_room
from cachegraph.channels.fusers.files.atomic_folder import replaced_folder
from cachegraph.channels.fusers.files.card import Card
from cachegraph.channels.fusers.files.joint_folder import PARTS

from ..data.dataset import TrainingExample
from ..data.examples import JointLesson, Replies, joint_lesson
from ..data.packed_replies import Branch, Tree
from ..pair import Pair
from .fuse import FuseLearner
from .graft import GraftLearner
from .learner import Learner, Report

__all__ = ["JointLearner"]


class JointLearner(Learner[JointLesson]):
    """Lets both learn from the same loss. Grafts take their places, then the receiver's own positions are corrected."""

    def __init__(self, pair: Pair, fuse: FuseLearner, graft: GraftLearner):
        self._pair = pair
        self._fuse = fuse
        self._graft = graft
        self.module = nn.ModuleDict({"fuse": fuse.module, "graft": graft.module})

    def lesson(self, example: TrainingExample) -> JointLesson:
        return joint_lesson(self._pair, example)

    def replies(self, lesson: JointLesson) -> Replies:
        return lesson.graft.replies

    def group(self, lesson: JointLesson) -> Hashable:
        return lesson.graft.text

    def prompt_tokens(self, lessons: Sequence[JointLesson]) -> int:
        return sum(len(lesson.prompt.ids) + len(lesson.own.ids) for lesson in lessons)

    def rates(self) -> Mapping[Tensor, float]:
        return {**self._graft.rates(), **self._fuse.rates()}

    def anneal(self, step: int) -> None:
        self._fuse.anneal(step)

    def start(self, lessons: Sequence[JointLesson], report: Report) -> None:
        self._graft.start([lesson.graft for lesson in lessons], report)
        self._fuse.fit([lesson.reading for lesson in lessons], [lesson.graft.replies for lesson in lessons], report)

    def trees(
        self, lessons: Sequence[JointLesson], others: Sequence[JointLesson] | None = None, right_only: bool = False
    ) -> tuple[list[Tree], list[int]]:
        readings = [lesson.reading for lesson in lessons]
        if others is not None:
            readings = [mine.mismatched(other) for mine, other in zip(lessons, others, strict=True)]
        caches = self._fuse.caches.sharer(readings)
        texts = [lesson.graft.text for lesson in (others or lessons)]
        grafts = [
            (lesson.at, kv)
            for lesson, kv in zip(lessons, self._graft.grafts(texts, [lesson.at for lesson in lessons]), strict=True)
        ]
        rooms = [make_room(reading, [(at, len(kv))]) for reading, (at, kv) in zip(readings, grafts, strict=True)]
        rows = self._fuse.fused_rows(rooms, caches, grafts)
        trees = []
        for lesson, room, row, (at, kv) in zip(lessons, rooms, rows, grafts, strict=True):
            segments = (*row, kv) if at == room.end else row
            replies = lesson.graft.replies
            trees.append(Tree(segments, [Branch(room.ids[room.end :], replies.alone() if right_only else replies)]))
        return trees, list(range(len(lessons)))

    def save(self, folder: Path, card: dict[str, object], dtype: torch.dtype) -> Card:
        with replaced_folder(folder, frozenset(PARTS)) as fresh:
            self._graft.save(fresh / "graft", card, dtype)
            return self._fuse.save(fresh / "fuse", card, dtype)
