"""Learner of the tuned control: a trained prefix of the receiver, which reads the sharer's text as words."""

from collections.abc import Hashable, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from random import Random

import torch

from cachegraph.channels.fusers.files.card import Card
from cachegraph.channels.fusers.files.weights import save_fuser
from cachegraph.channels.fusers.networks.prefix import Prefix
from cachegraph.channels.fusers.networks.translator import join_layers
from cachegraph.engine.kv.cache import KV
from cachegraph.errors import InputError

from ..data.dataset import TrainingExample
from ..data.examples import Replies, WordsExample, words_example
from ..data.packed_replies import Branch, Tree
from ..pair import Pair
from ..prefill import prefill
from .learner import Learner, ReportPhase

__all__ = ["PrefixLearner"]

_SMALLEST = 1e-3


class PrefixLearner(Learner[WordsExample]):
    """Holds the prefix."""

    def __init__(self, pair: Pair, prefix: Prefix, *, seed: int):
        self._pair = pair
        self._prefix = prefix
        self._seed = seed
        self.module = prefix.network

    def encode(self, example: TrainingExample) -> WordsExample:
        return words_example(self._pair, example, room=len(self._prefix))

    def replies(self, example: WordsExample) -> Replies:
        return example.replies

    def group(self, example: WordsExample) -> Hashable:
        return example.text

    def prompt_tokens(self, examples: Sequence[WordsExample]) -> int:
        prompts = [example.prompt for example in examples]
        return sum(
            len(trunk) + sum(len(prompts[i]) - len(trunk) for i in members)
            for trunk, members in _by_trunk(prompts, [example.text for example in examples])
        )

    def trees(
        self, examples: Sequence[WordsExample], others: Sequence[WordsExample] | None = None, right_only: bool = False
    ) -> tuple[list[Tree], list[int]]:
        """As for every learner; under `others` each prompt has the text of that other example."""
        prompts = [example.prompt for example in examples]
        texts = [example.text for example in others or examples]
        if others is not None:
            prompts = [example.about(self._pair, text) for example, text in zip(examples, texts, strict=True)]
        kv, trees, order = self._kv(), [], []
        for trunk, members in _by_trunk(prompts, texts):
            branches = [
                Branch(prompts[i][len(trunk) :], examples[i].replies.alone() if right_only else examples[i].replies)
                for i in members
            ]
            trees.append(Tree((kv,), branches, trunk))
            order += members
        return trees, [order.index(i) for i in range(len(examples))]

    def _kv(self) -> KV:
        """The entries in the receiver's dtype, with gradients to the prefix."""
        receiver = self._pair.receiver.engine.model
        return self._prefix.kv(receiver.device, receiver.dtype)

    def start(self, examples: Sequence[WordsExample], report: ReportPhase) -> None:
        """Start from the receiver's own cache of training prompts with their right replies, in random order.

        Raises InputError if the rows have fewer tokens than the prefix has positions.
        """
        network, count, ids = self._prefix.network, len(self._prefix), list[int]()
        order = list(range(len(examples)))
        Random(self._seed).shuffle(order)  # noqa: S311
        for example in (examples[i] for i in order):
            ids += [*example.prompt, *example.replies.ids[example.replies.right]]
            if len(ids) >= count:
                break
        if len(ids) < count:
            raise InputError(
                f"the training rows have {len(ids)} tokens, but the prefix starts from {count}; give more rows, or a "
                "smaller network"
            )
        report("prefix: reading", 0, 1)
        (kv,) = prefill(self._pair.receiver.engine.model, [ids[:count]])
        found = join_layers(kv.layers).float().to(network.entries.device)
        scale = found.square().mean(0).sqrt().clamp_min(_SMALLEST)
        with torch.no_grad():
            network.scale.copy_(scale)
            network.entries.copy_(found / scale)
        report("prefix: reading", 1, 1)

    def save(self, folder: Path, card: dict[str, object], dtype: torch.dtype) -> Card:
        full = Card.model_validate({**self._prefix.card.model_dump(), **card})
        return save_fuser(replace(self._prefix.to("cpu", dtype), card=full), folder)


def _by_trunk(prompts: Sequence[tuple[int, ...]], texts: Sequence[str]) -> list[tuple[tuple[int, ...], list[int]]]:
    """The prompts about each text, by index, with the tokens that all of them begin with; at least one is left over."""
    trunks = []
    for text in dict.fromkeys(texts):
        members = [i for i, other in enumerate(texts) if other == text]
        own = [prompts[i] for i in members]
        most = min(map(len, own)) - 1
        same = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*own, strict=False)))
        trunks.append((own[0][: min(same, most)], members))
    return trunks
