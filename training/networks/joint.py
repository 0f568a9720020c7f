"""Learner of a translator and a fuser for one edge: text that only the sharer reads is grafted, the rest is fused."""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from cachegraph.channels.cache.shared_prompt import make_room
from cachegraph.channels.fusers.files.atomic_folder import replaced_folder
from cachegraph.channels.fusers.files.card import Card
from cachegraph.channels.fusers.files.joint_folder import PARTS

from ..data.dataset import TrainingExample
from ..data.examples import JointExample, Replies, joint_example
from ..data.packed_replies import Branch, Tree
from ..pair import Pair
from .fuse import FuseLearner
from .graft import GraftLearner
from .learner import Learner, ReportPhase

__all__ = ["JointLearner"]


class JointLearner(Learner[JointExample]):
    """Trains both with one loss: inserts the grafts, then corrects the receiver's own positions."""

    def __init__(self, pair: Pair, fuse: FuseLearner, graft: GraftLearner):
        self._pair = pair
        self._fuse = fuse
        self._graft = graft
        self.start_card = graft.start_card
        self.module = nn.ModuleDict({"fuse": fuse.module, "graft": graft.module})

    def encode(self, example: TrainingExample) -> JointExample:
        return joint_example(self._pair, example)

    def replies(self, example: JointExample) -> Replies:
        return example.graft.replies

    def group(self, example: JointExample) -> Hashable:
        return example.graft.text

    def prompt_tokens(self, examples: Sequence[JointExample]) -> int:
        return sum(len(example.prompt.ids) + len(example.own.ids) for example in examples)

    def learning_rate_scales(self) -> Mapping[Tensor, float]:
        return {**self._graft.learning_rate_scales(), **self._fuse.learning_rate_scales()}

    def anneal(self, step: int) -> None:
        self._fuse.anneal(step)

    def start(self, examples: Sequence[JointExample], report: ReportPhase) -> None:
        self._graft.start([example.graft for example in examples], report)
        self._fuse.fit(
            [example.shared_prompt for example in examples], [example.graft.replies for example in examples], report
        )

    def trees(
        self, examples: Sequence[JointExample], others: Sequence[JointExample] | None = None, right_only: bool = False
    ) -> tuple[list[Tree], list[int]]:
        shared_prompts = [example.shared_prompt for example in examples]
        if others is not None:
            shared_prompts = [example.mismatched(other) for example, other in zip(examples, others, strict=True)]
        caches = self._fuse.caches.sharer(shared_prompts)
        texts = [example.graft.text for example in (others or examples)]
        grafts = [
            (example.at, kv)
            for example, kv in zip(
                examples, self._graft.grafts(texts, [example.at for example in examples]), strict=True
            )
        ]
        rooms = [
            make_room(shared_prompt, [(at, len(kv))])
            for shared_prompt, (at, kv) in zip(shared_prompts, grafts, strict=True)
        ]
        rows = self._fuse.fused_rows(rooms, caches, grafts)
        trees = []
        for example, room, row, (at, kv) in zip(examples, rooms, rows, grafts, strict=True):
            segments = (*row, kv) if at == room.end else row
            replies = example.graft.replies
            trees.append(Tree(segments, [Branch(room.ids[room.end :], replies.alone() if right_only else replies)]))
        return trees, list(range(len(examples)))

    def save(self, folder: Path, card: dict[str, object], dtype: torch.dtype) -> Card:
        with replaced_folder(folder, frozenset(PARTS)) as fresh:
            self._graft.save(fresh / "graft", card, dtype)
            return self._fuse.save(fresh / "fuse", card, dtype)
