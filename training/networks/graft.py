"""Learner of a translator, which turns the sharer's cache of a text into the receiver's."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from cachegraph.channels.fusers.files.card import Card
from cachegraph.channels.fusers.files.weights import save_fuser
from cachegraph.channels.fusers.networks.translator import Translator
from cachegraph.engine.kv.cache import KV

from ..data.dataset import TrainingExample
from ..data.examples import GraftExample, PrivateText, Replies, graft_example
from ..data.packed_replies import Branch, Tree
from ..pair import Pair
from ..prefill import LRUCache, prefill
from ..spec import RidgeSpec
from .learner import Learner, ReportPhase
from .ridge import fit_ridge
from .start import start_from

__all__ = ["GraftLearner"]


class GraftLearner(Learner[GraftExample]):
    """Holds the translator. `zero` replaces every sharer cache by zeros; `start` is a trained one to start from."""

    def __init__(
        self,
        pair: Pair,
        translator: Translator,
        *,
        zero: bool,
        ridge: RidgeSpec | None,
        cache_bytes: int,
        seed: int,
        start: Translator | None = None,
    ):
        self._pair = pair
        self._translator = translator
        self._zero = zero
        self._ridge = ridge
        self._start = start
        self.start_card = None if start is None else start.card
        self._seed = seed
        self._features: LRUCache[Tensor] = LRUCache(cache_bytes, lambda x: x.nbytes)
        self._before: LRUCache[KV] = LRUCache(256 << 20, lambda kv: kv.nbytes)
        self.module = translator.network

    def encode(self, example: TrainingExample) -> GraftExample:
        return graft_example(self._pair, example)

    def replies(self, example: GraftExample) -> Replies:
        return example.replies

    def group(self, example: GraftExample) -> Hashable:
        return example.text

    def prompt_tokens(self, examples: Sequence[GraftExample]) -> int:
        texts = {example.text for example in examples}
        return sum(len(text.ids) for text in texts) + sum(len(example.after) for example in examples)

    def features(self, texts: Sequence[PrivateText]) -> list[Tensor]:
        """The translator's inputs for each text: (private tokens, features), unrotated, in the sharer's dtype."""

        def make(missing: list[int]) -> list[Tensor]:
            model = self._pair.sharer.engine.model
            found = []
            for index in missing:
                # Not batched: batching changes the last bits, and a resumed training batches differently.
                (kv,) = prefill(model, [texts[index].ids], layers=self._translator.sharer_depth)
                chosen = kv.select(torch.tensor(texts[index].private))
                still = model.rotation.unrotated(chosen)
                found.append(self._translator.read(still.layers))
            return found

        held = self._features.get(list(texts), make)
        return [torch.zeros_like(tensor) for tensor in held] if self._zero else held

    def before(self, prompts: Sequence[tuple[int, ...]]) -> list[tuple[KV, ...]]:
        """The receiver's own cache of the tokens before the slot, by layer (1, kv_heads, positions, head_dim); empty if
        the slot comes first.
        """
        model = self._pair.receiver.engine.model
        full = [prompt for prompt in prompts if prompt]
        found = iter(self._before.get(full, lambda missing: [prefill(model, [full[i]])[0] for i in missing]))
        return [(next(found),) if prompt else () for prompt in prompts]

    def trees(
        self, examples: Sequence[GraftExample], others: Sequence[GraftExample] | None = None, right_only: bool = False
    ) -> tuple[list[Tree], list[int]]:
        texts = [example.text for example in (others or examples)]
        keys = [(example.before, text) for example, text in zip(examples, texts, strict=True)]
        unique = list(dict.fromkeys(keys))
        rows = [[i for i, key in enumerate(keys) if key == unique_key] for unique_key in unique]
        grafts = self.grafts([text for _, text in unique], [len(before) for before, _ in unique])
        trees = [
            Tree(
                (*past, graft),
                [
                    Branch(examples[i].after, examples[i].replies.alone() if right_only else examples[i].replies)
                    for i in members
                ],
            )
            for past, graft, members in zip(self.before([b for b, _ in unique]), grafts, rows, strict=True)
        ]
        order = [i for members in rows for i in members]
        return trees, [order.index(i) for i in range(len(examples))]

    def grafts(self, texts: Sequence[PrivateText], starts: Sequence[int]) -> list[KV]:
        """Each text's translated cache, by layer (1, kv_heads, positions, head_dim), at positions from its start on.

        Gradients flow to the translator.
        """
        receiver = self._pair.receiver.engine.model
        parts = self.features(texts)
        weight = self._translator.network.down.weight
        joined = torch.cat(parts).to(weight.device, torch.float32)
        translated = self.module(joined)
        grafts = []
        for y, start in zip(translated.split([len(part) for part in parts]), starts, strict=True):
            layers = self._translator.write(y.to(receiver.device, receiver.dtype))
            still = KV(layers, torch.zeros(len(y), dtype=torch.int64))
            grafts.append(receiver.rotation.move(still, torch.arange(start, start + len(y))))
        return grafts

    def start(self, examples: Sequence[GraftExample], report: ReportPhase) -> None:
        if self._start is not None:
            sharer, spec = self._pair.sharer.engine.model, self._ridge or RidgeSpec()
            start_from(self._translator, self._start, sharer, examples, spec, self._seed, report)
        elif self._ridge is not None:
            fit_ridge(self, self._translator.network, self._pair.receiver, examples, self._ridge, self._seed, report)

    def learning_rate_scales(self) -> Mapping[Tensor, float]:
        """Slow `down`, (rank, features), by rank / features: it reads a position's whole cache, and AdamW's update to a
        layer's output grows with its fan-in (arXiv 2203.03466).
        """
        weight = self._translator.network.down.weight
        return {weight: min(1.0, weight.shape[0] / weight.shape[1])}

    def save(self, folder: Path, card: dict[str, object], dtype: torch.dtype) -> Card:
        full = Card.model_validate({**self._translator.card.model_dump(), **card})
        return save_fuser(replace(self._translator.to("cpu", dtype), card=full), folder)
