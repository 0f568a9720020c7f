"""A translator in training: texts that only the sharer has read become the receiver's cache."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from cachegraph.channels.fusers.files.card import Card
from cachegraph.channels.fusers.files.weights import save_fuser
from cachegraph.channels.fusers.networks.translator import Translator
from cachegraph.engine.kv.cache import KV

from ..caches import Shelf, read
from ..data.dataset import TrainingExample
from ..data.examples import GraftLesson, Replies, Text, graft_lesson
from ..data.packed_replies import Branch, Tree
from ..pair import Pair
from ..spec import RidgeSpec
from .learner import Learner, Report
from .ridge import fit_ridge

__all__ = ["GraftLearner"]


class GraftLearner(Learner[GraftLesson]):
    """Holds the translator; `zero` feeds it zeros in the place of every sharer's cache."""

    def __init__(
        self, pair: Pair, translator: Translator, *, zero: bool, ridge: RidgeSpec | None, shelf: int, seed: int
    ):
        self._pair = pair
        self._translator = translator
        self._zero = zero
        self._ridge = ridge
        self._seed = seed
        self._features: Shelf[Tensor] = Shelf(shelf, lambda x: x.nbytes)
        self._before: Shelf[KV] = Shelf(256 << 20, lambda kv: kv.nbytes)
        self.module = translator.network

    def lesson(self, example: TrainingExample) -> GraftLesson:
        return graft_lesson(self._pair, example)

    def replies(self, lesson: GraftLesson) -> Replies:
        return lesson.replies

    def group(self, lesson: GraftLesson) -> Hashable:
        return lesson.text

    def prompt_tokens(self, lessons: Sequence[GraftLesson]) -> int:
        texts = {lesson.text for lesson in lessons}
        return sum(len(text.ids) for text in texts) + sum(len(lesson.after) for lesson in lessons)

    def features(self, texts: Sequence[Text]) -> list[Tensor]:
        """What the translator reads of each text: (private tokens, features), unrotated, in the sharer's dtype."""

        def make(missing: list[int]) -> list[Tensor]:
            model = self._pair.sharer.engine.model
            found = []
            for index in missing:
                (kv,) = read(model, [texts[index].ids])  # alone: company changes last bits, and a resumed run has other
                chosen = kv.select(torch.tensor(texts[index].private))
                still = model.rotation.unrotated(chosen)
                found.append(self._translator.read(still.layers))
            return found

        held = self._features.get(list(texts), make)
        return [torch.zeros_like(each) for each in held] if self._zero else held

    def before(self, prompts: Sequence[tuple[int, ...]]) -> list[tuple[KV, ...]]:
        """The receiver's own cache in front of the slot; none where the slot comes first."""
        model = self._pair.receiver.engine.model
        full = [prompt for prompt in prompts if prompt]
        found = iter(self._before.get(full, lambda missing: [read(model, [full[i]])[0] for i in missing]))
        return [(next(found),) if prompt else () for prompt in prompts]

    def trees(
        self, lessons: Sequence[GraftLesson], others: Sequence[GraftLesson] | None = None, right_only: bool = False
    ) -> tuple[list[Tree], list[int]]:
        texts = [lesson.text for lesson in (others or lessons)]
        keys = [(lesson.before, text) for lesson, text in zip(lessons, texts, strict=True)]
        unique = list(dict.fromkeys(keys))
        rows = [[i for i, key in enumerate(keys) if key == each] for each in unique]
        grafts = self.grafts([text for _, text in unique], [len(before) for before, _ in unique])
        trees = [
            Tree(
                (*past, graft),
                [
                    Branch(lessons[i].after, lessons[i].replies.alone() if right_only else lessons[i].replies)
                    for i in members
                ],
            )
            for past, graft, members in zip(self.before([b for b, _ in unique]), grafts, rows, strict=True)
        ]
        order = [i for members in rows for i in members]
        return trees, [order.index(i) for i in range(len(lessons))]

    def grafts(self, texts: Sequence[Text], starts: Sequence[int]) -> list[KV]:
        """Each text's cache as the receiver's, at its positions, with gradients to the translator."""
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

    def start(self, lessons: Sequence[GraftLesson], report: Report) -> None:
        if self._ridge is not None:
            fit_ridge(self, self._translator.network, self._pair.receiver, lessons, self._ridge, self._seed, report)

    def rates(self) -> Mapping[Tensor, float]:
        """Adam moves all weights alike, so what comes of one step grows with the number of inputs. `down` has a sharer
        position's whole cache for inputs, and is slowed to what the bottleneck's layers do (arXiv 2203.03466)."""
        weight = self._translator.network.down.weight
        return {weight: min(1.0, weight.shape[0] / weight.shape[1])}

    def save(self, folder: Path, card: dict[str, object], dtype: torch.dtype) -> Card:
        full = Card.model_validate({**self._translator.card.model_dump(), **card})
        return save_fuser(replace(self._translator.to("cpu", dtype), card=full), folder)
