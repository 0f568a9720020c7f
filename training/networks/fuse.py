"""Learner of a fuser, which corrects the receiver's cache at the positions that both models have read."""

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
    """A row of the receiver's batch whose stretch the sharer has read too, and the sharer's cache of it."""

    row: int
    cache: KV
    pairs: Pairs


class FuseLearner(Learner[FuseExample]):
    """Holds the fuser and the caches of its prompts. `zero`, `cache_bytes`: see PromptCaches."""

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
        return sum(len(example.shared_prompt.ids) + len(example.shared_prompt.sharers[0].ids) for example in examples)

    def anneal(self, step: int) -> None:
        self._fuser.anneal(step)

    def prepare(self, examples: Sequence[FuseExample], report: ReportPhase) -> None:
        self.caches.prepare([example.shared_prompt for example in examples], report)

    def start(self, examples: Sequence[FuseExample], report: ReportPhase) -> None:
        self.fit([example.shared_prompt for example in examples], [example.replies for example in examples], report)

    def fit(self, shared_prompts: Sequence[SharedPrompt], replies: Sequence[Replies], report: ReportPhase) -> None:
        """Fit the closed-form start to prompts and their replies. Does nothing for a fuser without one."""
        if isinstance(self._fuser, BottleneckFuser):
            model = self._pair.receiver.engine.model
            fit_bottleneck(self.caches, self._fuser.network, model, shared_prompts, replies, self._ridge, report)

    def learning_rate_scales(self) -> Mapping[Tensor, float]:
        """Slow a bottleneck's first layer, (rank, features), by rank / features, as in a translator (arXiv 2203.03466).

        Its inputs are a position's whole cache.
        """
        if not isinstance(self._fuser, BottleneckFuser):
            return {}
        weight = self._fuser.network.down.weight
        return {weight: min(1.0, weight.shape[0] / weight.shape[1])}

    def trees(
        self, examples: Sequence[FuseExample], others: Sequence[FuseExample] | None = None, right_only: bool = False
    ) -> tuple[list[Tree], list[int]]:
        shared_prompts = [example.shared_prompt for example in examples]
        if others is not None:
            shared_prompts = [example.mismatched(other) for example, other in zip(examples, others, strict=True)]
        rows = self.fused_rows(shared_prompts, self.caches.sharer(shared_prompts))
        trees = []
        for example, shared_prompt, segments in zip(examples, shared_prompts, rows, strict=True):
            replies = example.replies.alone() if right_only else example.replies
            positions = None if shared_prompt.positions is None else shared_prompt.positions[shared_prompt.end :]
            trees.append(Tree(segments, [Branch(shared_prompt.ids[shared_prompt.end :], replies, positions)]))
        return trees, list(range(len(examples)))

    def fused_rows(
        self,
        shared_prompts: Sequence[SharedPrompt],
        caches: Sequence[KV | None],
        grafts: Sequence[tuple[int, KV]] | None = None,
    ) -> list[tuple[KV, ...]]:
        """The receiver's cache segments of each prompt, computed stretch by stretch for all prompts at once.

        Each layer is (1, kv_heads, positions, head_dim). `caches` has each prompt's sharer cache, or None.

        Later stretches attend to corrected ones, so gradients flow through them. `grafts` has for each prompt the
        index of a token and the cache to put before it; the prompt has room for it.
        """
        model = self._pair.receiver.engine.model
        segments: list[tuple[KV, ...]] = [()] * len(shared_prompts)
        for index in range(max((len(shared_prompt.stretches) for shared_prompt in shared_prompts), default=0)):
            members = [i for i, shared_prompt in enumerate(shared_prompts) if index < len(shared_prompt.stretches)]
            rows = []
            for i in members:
                shared_prompt, (start, end, _) = shared_prompts[i], shared_prompts[i].stretches[index]
                if grafts is not None and grafts[i][0] == start:
                    segments[i] = (*segments[i], grafts[i][1])
                positions = None if shared_prompt.positions is None else shared_prompt.positions[start:end]
                rows.append(Row(shared_prompt.ids[start:end], RowCache(segments[i]), "none", positions))
            if any(segments):
                forward(model.network, model.info, rows)
                owns = [row.cache.tail() for row in rows]
            else:  # nothing that learns stands in front
                owns = self.caches.own([shared_prompts[i] for i in members])
            shared = [
                _Shared(place, cache, pairs[0])
                for place, i in enumerate(members)
                if (pairs := shared_prompts[i].stretches[index].pairs) and (cache := caches[i]) is not None
            ]
            for i, own in zip(members, self._corrected(owns, shared), strict=True):
                segments[i] = (*segments[i], own)
        return segments

    def _corrected(self, owns: list[KV], shared: Sequence[_Shared]) -> list[KV]:
        """The corrected caches. Projectors work per position, so all rows are concatenated and run as one batch."""
        if not shared:
            return owns
        receiver_kv = concat([owns[source.row] for source in shared])
        sharer_kv = concat([source.cache for source in shared])
        starts = [_starts(len(owns[source.row]) for source in shared), _starts(len(source.cache) for source in shared)]
        receiver_positions = torch.cat(
            [source.pairs.receiver + start for source, start in zip(shared, starts[0], strict=True)]
        )
        sharer_positions = torch.cat(
            [source.pairs.sharer + start for source, start in zip(shared, starts[1], strict=True)]
        )
        rope = receiver_rope(self._fuser, self._pair.receiver.engine, receiver_kv.positions)
        fused = fuse_layers(
            receiver_kv.layers,
            [FuserInput(self._fuser, sharer_kv.layers, (receiver_positions, sharer_positions), rope=rope)],
        )
        joined = KV(tuple(LayerKV(*layer) for layer in fused.layers), receiver_kv.positions)
        corrected = list(owns)
        for source, start in zip(shared, starts[0], strict=True):
            corrected[source.row] = joined.select(slice(start, start + len(owns[source.row])))
        return corrected

    def save(self, folder: Path, card: dict[str, object], dtype: torch.dtype) -> Card:
        full = Card.model_validate({**self._fuser.card.model_dump(), **card})
        return save_fuser(replace(self._fuser.to("cpu", dtype), card=full), folder)


def _starts(lengths: Iterable[int]) -> list[int]:
    return [0, *accumulate(lengths)][:-1]
