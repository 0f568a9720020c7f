"""Samples the next tokens: all rows of a step in one batch of operations, on the device of the logits.

What a row draws depends only on its own seed and on how many tokens it has drawn: a hash of the two gives a number,
which is looked up in the row's cumulative probabilities. So a row gets the same tokens alone and in any batch, and
nothing has to be undone if a step is repeated.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from hashlib import blake2b
from secrets import randbits

import torch
from torch import Tensor

from cachegraph.errors import ModelError

from ..spec import GenerateSpec
from ..torch_threads import on_one_thread
from ..transfer import to_device, to_host
from .grammar import GrammarState, allowed

__all__ = ["OnSampled", "Sampler", "sample"]

OnSampled = Callable[
    [Tensor, Callable[[], list[int]]], None
]  # called with the ids, (rows,), and a function that waits for them

_LIKELY = (
    1024  # as many of the likeliest tokens as usually hold all of top_p; sorting a whole vocabulary is slow on CPUs
)


class Sampler:
    """Samples one row's tokens; keeps what it needs from token to token."""

    def __init__(
        self, spec: GenerateSpec, eos_ids: frozenset[int], seen: Sequence[int] = (), grammar: GrammarState | None = None
    ):
        self.spec = spec
        self.grammar = grammar
        self.taken = 0
        self._eos_ids = sorted(eos_ids)
        self._seed = randbits(64) if spec.seed is None else spec.seed % 2**63
        self._before = list(seen) if spec.repetition_penalty != 1.0 else []
        self._seen: Tensor | None = None

    @property
    def over(self) -> bool:
        """Whether the reply is complete and can't continue."""
        return self.grammar is not None and self.grammar.over

    @property
    def whole(self) -> bool:
        """Whether the reply may end where it is."""
        return self.grammar is None or self.grammar.whole

    @property
    def barred(self) -> list[int]:
        """Tokens that must not come next. Where there is a grammar, it alone says when the reply may end."""
        if self.grammar is not None:
            return []
        return self._eos_ids if self.spec.ignore_eos or self.taken < self.spec.min_new_tokens else []

    def seen(self, vocabulary: int, device: torch.device) -> Tensor:
        """(vocab,) of bool: the tokens of the prompt and of the reply."""
        if self._seen is None:
            self._seen = torch.zeros(vocabulary, dtype=torch.bool, device=device)
            self._seen[to_device(self._before, torch.int64, device)] = True
        return self._seen

    def number(self) -> float:
        """Where in its cumulative probabilities the next token is: in [0, 1)."""
        digest = blake2b(b"%d %d" % (self._seed, self.taken), digest_size=8).digest()
        return (int.from_bytes(digest, "big") >> 11) / 2**53

    def take(self, token: int) -> int:
        """This one comes next. Raises ModelError where `sample` found none."""
        if token < 0:
            raise ModelError("its logits are not numbers; use another dtype, such as float32, or other weights")
        self.taken += 1
        if self.grammar is not None:
            self.grammar.take(token)
        if self._seen is not None:
            self._seen[token] = True
        return token


def sample(
    samplers: Sequence[Sampler],
    logits: Sequence[Tensor],
    on_sampled: OnSampled | None = None,
) -> list[int]:
    """By row, the next token; -1 where there is none because no logit is a number. `logits`: (vocab,) each, unchanged.

    The ids that come back are the only thing that is copied from the device. `on_sampled` is called before the host has
    them.
    """
    if on_sampled is None and all(map(_is_plain, samplers, logits)):
        return [_likeliest_alone(sampler, row_logits) for sampler, row_logits in zip(samplers, logits, strict=True)]
    with on_one_thread() if logits[0].device.type == "cpu" else nullcontext():
        ids = _choose(samplers, logits)
    known = to_host(ids)
    if on_sampled is not None:
        on_sampled(ids, known)
    return known()


def _choose(samplers: Sequence[Sampler], logits: Sequence[Tensor]) -> Tensor:
    greedy = [row for row, sampler in enumerate(samplers) if sampler.spec.temperature == 0]
    drawing = [row for row, sampler in enumerate(samplers) if sampler.spec.temperature != 0]
    picked = []
    for rows, pick in ((greedy, _likeliest), (drawing, _draw)):
        if rows:
            chosen = [samplers[row] for row in rows]
            picked.append(pick(chosen, _edited(chosen, [logits[row] for row in rows])))
    if len(picked) == 1:
        return picked[0]
    ids = torch.cat(picked)
    return ids[to_device(sorted(range(len(samplers)), key=(greedy + drawing).__getitem__), torch.int64, ids.device)]


def _is_plain(sampler: Sampler, logits: Tensor) -> bool:
    """The likeliest token that is allowed, of logits as the CPU's kernels give them."""
    edited = sampler.grammar is not None or sampler.spec.repetition_penalty != 1.0
    from_kernels = logits.device.type == "cpu" and logits.dtype == torch.float32
    return from_kernels and sampler.spec.temperature == 0 and not edited


def _likeliest_alone(sampler: Sampler, logits: Tensor) -> int:
    """Without torch: as `on_one_thread`, and faster."""
    found = logits.numpy()
    token = int(found.argmax())  # the first of equals
    if token in sampler.barred:
        found = found.copy()
        found[sampler.barred] = float("-inf")
        token = int(found.argmax())
    return token if found[token] > float("-inf") else -1


# Each takes the samplers of a batch and its logits, (rows, vocab).


def _likeliest(_: Sequence[Sampler], logits: Tensor) -> Tensor:
    value, token = logits.max(-1)  # the first of equals, as argmax, which is slower in 16 bits
    return torch.where(value > float("-inf"), token, -1)


def _draw(samplers: Sequence[Sampler], logits: Tensor) -> Tensor:
    """(rows,) tokens, each where its row's number falls in the cumulative probabilities."""
    cumulative = probabilities(samplers, logits).cumsum(-1)
    total = cumulative[:, -1:]
    at = _column(samplers, Sampler.number, cumulative) * total
    at = torch.minimum(at, torch.nextafter(total, torch.zeros_like(total)))  # a product may be rounded up to the total
    tokens = torch.searchsorted(cumulative, at, right=True)
    return torch.where(total > 0, tokens, -1).squeeze(-1)


def probabilities(samplers: Sequence[Sampler], logits: Tensor) -> Tensor:
    """(rows, vocab) after temperature, top-k, top-p and min-p, up to a factor a row."""
    # Cumulative sums over a vocabulary need the longer number; Apple's GPUs have none.
    logits = logits.to(torch.float32 if logits.device.type == "mps" else torch.float64)
    temperature = _column(samplers, lambda sampler: sampler.spec.temperature, logits)
    temperature = temperature.clamp_min(torch.finfo(logits.dtype).tiny)
    # The likeliest at 0: no temperature is too low.
    scaled = (logits - logits.max(-1, keepdim=True).values) / temperature
    top_k = [min(sampler.spec.top_k or scaled.shape[-1], scaled.shape[-1]) for sampler in samplers]
    if min(top_k) < scaled.shape[-1]:
        scaled = scaled.masked_fill(scaled < _bar_of_top_k(scaled, top_k), float("-inf"))
    found = scaled.softmax(-1)
    if any(sampler.spec.top_p < 1 for sampler in samplers):
        top_p = _column(samplers, lambda sampler: sampler.spec.top_p, found)
        found = torch.where((found < _bar_of_top_p(found, top_p)) & (top_p < 1), 0, found)
    if any(sampler.spec.min_p > 0 for sampler in samplers):
        bar = _column(samplers, lambda sampler: sampler.spec.min_p, found) * found.max(-1, keepdim=True).values
        found = torch.where(found < bar, 0, found)
    return found


def _bar_of_top_k(scaled: Tensor, top_k: Sequence[int]) -> Tensor:
    """(rows, 1): the least that stays."""
    limited = [k for k in top_k if k < scaled.shape[-1]]
    ranked = scaled.topk(max(limited)).values
    last = to_device([[min(k, ranked.shape[-1]) - 1] for k in top_k], torch.int64, scaled.device)
    unlimited = to_device([[k == scaled.shape[-1]] for k in top_k], torch.bool, scaled.device)
    return ranked.gather(-1, last).masked_fill(unlimited, float("-inf"))


def _bar_of_top_p(found: Tensor, top_p: Tensor) -> Tensor:
    """(rows, 1): the least likely of as many as it takes to reach top_p. The first one always stays."""
    if found.device.type == "cpu" and found.shape[-1] > _LIKELY:
        ranked = found.topk(_LIKELY).values
        if bool(((ranked.cumsum(-1)[:, -1:] >= top_p) | (top_p == 1)).all()):
            return _crossing(ranked, top_p)
    return _crossing(found.sort(descending=True).values, top_p)


def _crossing(ranked: Tensor, top_p: Tensor) -> Tensor:
    last = (ranked.cumsum(-1) < top_p).sum(-1, keepdim=True)
    return ranked.gather(-1, last.clamp_max(ranked.shape[-1] - 1))


# What changes logits before anything is chosen


def _edited(samplers: Sequence[Sampler], logits: Sequence[Tensor]) -> Tensor:
    """(rows, vocab): the rows' logits with what their samplers change; they themselves stay as they are."""
    penalised = [row for row, sampler in enumerate(samplers) if sampler.spec.repetition_penalty != 1.0]
    barred = [(row, token) for row, sampler in enumerate(samplers) for token in sampler.barred]
    held = [row for row, sampler in enumerate(samplers) if sampler.grammar is not None]
    if len(logits) == 1 and not (penalised or barred or held):
        return logits[0][None]
    together = torch.stack(list(logits))
    if penalised:
        rows = to_device(penalised, torch.int64, together.device)
        together[rows] = _penalised([samplers[row] for row in penalised], together[rows])
    if barred:
        rows, tokens = to_device(barred, torch.int64, together.device).unbind(-1)
        together[rows, tokens] = float("-inf")
    if held:
        masks = [grammar.mask() for sampler in samplers if (grammar := sampler.grammar) is not None]
        rows = to_device(held, torch.int64, together.device)
        may = allowed(masks, together.shape[-1], together.device)
        together[rows] = together[rows].masked_fill(~may, float("-inf"))
    return together


def _penalised(samplers: Sequence[Sampler], logits: Tensor) -> Tensor:
    """Tokens that occurred are made less likely (CTRL, arXiv 1909.05858)."""
    seen = torch.stack([sampler.seen(logits.shape[-1], logits.device) for sampler in samplers])
    wide = logits.float()
    penalty = _column(samplers, lambda sampler: sampler.spec.repetition_penalty, wide)
    return torch.where(seen, torch.where(wide > 0, wide / penalty, wide * penalty).to(logits.dtype), logits)


def _column(samplers: Sequence[Sampler], value: Callable[[Sampler], float], like: Tensor) -> Tensor:
    """(rows, 1) of one value a row."""
    return to_device([[value(sampler)] for sampler in samplers], like.dtype, like.device)
