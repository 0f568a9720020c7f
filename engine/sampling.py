"""From logits to the next token, row by row."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .spec import GenerateSpec

__all__ = ["Sampler"]


class Sampler:
    """One row's way of choosing tokens; keeps its own random state, so neighbours don't change its draws."""

    def __init__(self, spec: GenerateSpec, eos_ids: frozenset[int]):
        self._spec = spec
        self._eos_ids = sorted(eos_ids)
        self._generator = torch.Generator()
        if spec.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(spec.seed % 2**63)

    def choose(self, logits: Tensor, seen: Sequence[int], generated: int) -> int:
        """The next token. `logits`: (vocab,); `seen`: the prompt and the reply; `generated`: the reply's length."""
        spec = self._spec
        if spec.repetition_penalty != 1.0 and seen:
            logits = _penalise(logits, seen, spec.repetition_penalty)
        if self._eos_ids and (spec.ignore_eos or generated < spec.min_new_tokens):
            logits = logits.clone()
            logits[self._eos_ids] = float("-inf")
        if spec.temperature == 0:
            return int(logits.argmax())
        return int(torch.multinomial(self._probabilities(logits), 1, generator=self._generator))

    def _probabilities(self, logits: Tensor) -> Tensor:
        """(vocab,) after temperature, top-k, top-p and min-p, on the CPU."""
        spec = self._spec
        scaled = logits.double().cpu()
        scaled = (scaled - scaled.max()) / spec.temperature  # the most likely at 0: no temperature is too low
        if 0 < spec.top_k < len(scaled):
            scaled = scaled.masked_fill(scaled < scaled.topk(spec.top_k).values[-1], float("-inf"))
        probabilities = scaled.softmax(-1)
        if spec.top_p < 1:
            ranked, order = probabilities.sort(descending=True)
            beyond = ranked.cumsum(-1) - ranked >= spec.top_p  # the first token always stays
            probabilities[order[beyond]] = 0
        if spec.min_p > 0:
            probabilities[probabilities < spec.min_p * probabilities.max()] = 0
        return probabilities / probabilities.sum()


def _penalise(logits: Tensor, seen: Sequence[int], penalty: float) -> Tensor:
    """Make tokens that occurred less likely (CTRL, arXiv 1909.05858)."""
    logits = logits.clone()
    ids = torch.tensor(sorted(set(seen)), device=logits.device)
    values = logits[ids]
    logits[ids] = torch.where(values > 0, values / penalty, values * penalty)
    return logits
