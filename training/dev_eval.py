"""Dev evaluation of a fuser: task accuracy and answer log-probability, with the right and with a mismatched cache.

Training loss predicts neither (arXiv 2605.22863), so these scores choose the checkpoint.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from cachegraph.engine.model.load import LoadedModel

from .data.packed_replies import reply_logprobs
from .networks.learner import Learner

__all__ = ["DevScores", "derange", "evaluate_dev"]

ROWS_AT_ONCE = 16


@dataclass(frozen=True)
class DevScores:
    """Means over the dev examples. Accuracies are fractions, None without choices; log-probabilities are in nats."""

    rows: int
    accuracy: float | None
    accuracy_mismatched: float | None
    answer_logprob: float
    answer_logprob_mismatched: float

    @property
    def score(self) -> float:
        """Accuracy plus its gap to the mismatched cache, or the same in nats without choices. Higher is better."""
        if self.accuracy is None or self.accuracy_mismatched is None:
            return 2 * self.answer_logprob - self.answer_logprob_mismatched
        return 2 * self.accuracy - self.accuracy_mismatched

    @property
    def noise(self) -> float:
        """About one standard error of the score. A smaller difference between checkpoints means nothing."""
        return 0.0 if self.accuracy is None else 1 / math.sqrt(self.rows)

    def numbers(self) -> dict[str, float]:
        return {name: value for name, value in asdict(self).items() if value is not None}


def evaluate_dev(learner: Learner[Any], model: LoadedModel, examples: Sequence[Any]) -> DevScores:
    """Score every example with its own sharer cache and with another text's."""
    learner.module.eval()
    others = [examples[i] for i in derange([learner.group(example) for example in examples])]
    own = _scores(learner, model, examples, None)
    mismatched = _scores(learner, model, examples, others)
    learner.module.train()
    rights = [learner.replies(example).right for example in examples]
    chosen = [(a, b, right) for a, b, right in zip(own, mismatched, rights, strict=True) if len(a) > 1]

    def accuracy(which: int) -> float | None:
        hits = [int(row[which].argmax()) == row[2] for row in chosen]  # type: ignore[union-attr]
        return sum(hits) / len(hits) if hits else None

    def mean(scores: Sequence[torch.Tensor]) -> float:
        return sum(float(logprobs[right]) for logprobs, right in zip(scores, rights, strict=True)) / len(rights)

    return DevScores(len(examples), accuracy(0), accuracy(1), mean(own), mean(mismatched))


def derange(groups: Sequence[object]) -> list[int]:
    """For each index one of another group: the first index of the next group. The same group if there is only one."""
    order = list(dict.fromkeys(groups))
    first = {group: groups.index(group) for group in order}
    following = {group: first[order[(i + 1) % len(order)]] for i, group in enumerate(order)}
    return [following[group] for group in groups]


@torch.no_grad()
def _scores(
    learner: Learner[Any], model: LoadedModel, examples: Sequence[Any], others: Sequence[Any] | None
) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for start in range(0, len(examples), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        trees, places = learner.trees(examples[part], None if others is None else others[part])
        flat = [scores for tree in reply_logprobs(model, trees) for scores in tree]
        found += [flat[place].cpu() for place in places]
    return found
