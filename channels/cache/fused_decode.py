"""Decoding with sharers that read along: every new position is corrected before anything attends to it.

A new token's correction is computed from its K and V in a row that the reply's corrections never touch, as in the
reference. So each token costs the receiver two passes, one in that row and one that attends to what was corrected. It
is for fusers that were trained so (`include_response`).
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from cachegraph.common.run_all import run_all
from cachegraph.engine.engine import Engine
from cachegraph.engine.kv.cache import KV, LayerKV, concat
from cachegraph.engine.request import Cost, Generated, Prefilled
from cachegraph.engine.sampling.sampler import sample
from cachegraph.engine.spec import GenerateSpec
from cachegraph.engine.text.tokenizer import TextDecoder
from cachegraph.errors import ModelError

from .apply_fuser import FuserInput, FusionMode, fuse_layers
from .edge_plan import FusePlan
from .fused_prefill import as_read, receiver_rope

__all__ = ["FusedRow", "ReplySharers", "fused_generate"]


@dataclass(frozen=True, eq=False)
class ReplySharers:
    """Sharers that read a reply along: their plans and rows, and the receiver's row as `fused_prefill` gives it."""

    plans: Sequence[FusePlan]
    rows: Sequence[tuple[KV, ...]]
    uncorrected: tuple[KV, ...]
    mode: FusionMode = "parallel"
    grafted: int = 0  # positions in front that only the receiver has


class FusedRow:
    """A receiver's row and its sharers' rows, read on together."""

    def __init__(self, receiver: Engine, along: ReplySharers, segments: tuple[KV, ...]):
        self._receiver = receiver
        self._along = along
        self.segments = segments
        self.cost = Cost()

    @property
    def sharers(self) -> Sequence[tuple[KV, ...]]:
        """By sharer: its row so far."""
        return self._along.rows

    def fork(self) -> "FusedRow":
        """Another row that continues from here; what has been read is shared."""
        return FusedRow(self._receiver, self._along, self.segments)

    def full(self, ids: Sequence[int]) -> FusePlan | None:
        """The first sharer whose context has no room for these tokens too, or None."""
        for plan, row in zip(self._along.plans, self._along.rows, strict=True):
            last = int(row[-1].positions[-1]) if row else -1
            if last + sum(map(len, plan.stand_ins(ids))) >= plan.sharer.model.info.max_positions:
                return plan
        return None

    def check(self, ids: Sequence[int]) -> None:
        """Raise ModelError where one of the sharers can't read so far."""
        if (full := self.full(ids)) is not None:
            model = full.sharer.model
            raise ModelError(
                f"prompt and reply are too long for {model.name!r}, which reads the reply along and at most "
                f"{model.info.max_positions} tokens; shorten the inputs"
            )

    async def read(self, ids: Sequence[int], positions: Tensor | None = None) -> Tensor:
        """Logits (new, vocab) behind these tokens, whose positions all sharers correct. Raises as `check` does."""
        self.check(ids)
        there = None if positions is None else positions - self._along.grafted
        along = zip(self._along.plans, self._along.rows, strict=True)
        calls: list[Callable[[], Awaitable[Any]]] = [
            *(partial(_read_along, plan, row, ids, there) for plan, row in along),
            partial(self._receiver.prefill, ids, self._along.uncorrected, positions=positions),
        ]
        *theirs, own = await run_all(calls)
        assert own.kv is not None
        here, at = torch.arange(len(ids)), own.kv.positions
        sources = [
            FuserInput(
                plan.fuser, read.kv.layers, (here, read.there), rope=receiver_rope(plan.fuser, self._receiver, at)
            )
            for plan, read in zip(self._along.plans, theirs, strict=True)
        ]
        kv, mode = own.kv, self._along.mode
        fused = await self._receiver.call(lambda: fuse_layers(kv.layers, sources, mode))
        done: Prefilled = await self._receiver.prefill(
            ids, self.segments, positions=positions, override=[LayerKV(*layer) for layer in fused.layers], logits="all"
        )
        assert done.logits is not None
        self.segments = _compact(done.segments)
        self._along = replace(self._along, rows=[each.row for each in theirs], uncorrected=_compact(own.segments))
        self.cost.add(own.cost)
        self.cost.add(done.cost)
        return done.logits


class _ReadAlong(NamedTuple):
    """What a sharer made of some tokens: its row, their KV as its fuser reads it, and the entries to take."""

    row: tuple[KV, ...]
    kv: KV
    there: Tensor


async def _read_along(plan: FusePlan, row: tuple[KV, ...], ids: Sequence[int], positions: Tensor | None) -> _ReadAlong:
    stand_ins = plan.stand_ins(ids)
    tokens = [token for group in stand_ins for token in group]
    done = await plan.sharer.prefill(tokens, row, positions=positions, layers=plan.fuser.sharer_depth)
    assert done.kv is not None
    there = torch.tensor([len(group) for group in stand_ins]).cumsum(0) - 1
    return _ReadAlong(_compact(done.segments), await as_read(done.kv, plan.fuser, plan.sharer), there)


async def fused_generate(
    receiver: Engine,
    along: ReplySharers,
    ids: Sequence[int],
    segments: tuple[KV, ...],
    spec: GenerateSpec,
    *,
    positions: Tensor | None = None,
    on_text: Callable[[str], None] | None = None,
    seen: Sequence[int] = (),
) -> Generated:
    """As `Engine.generate`, with every position from `ids` on corrected."""
    row = FusedRow(receiver, along, segments)
    model = receiver.model
    sampler = await receiver.sampler(spec, [*seen, *ids])
    decoder = TextDecoder(model.tokenizer.decode, spec.stop) if model.tokenizer is not None else None
    reply: list[int] = []
    logits = await row.read(ids, positions)
    cost, began = replace(row.cost), perf_counter()
    while True:
        token = sampler.take(sample([sampler], [logits[-1]])[0])
        cost.first_token = cost.first_token if cost.first_token is not None else perf_counter()
        if token in model.info.eos_ids and not spec.ignore_eos:
            finish: Literal["eos", "stop", "length"] = "eos"
            break
        reply.append(token)
        if decoder is not None and (piece := decoder.push(token)) and on_text is not None:
            on_text(piece)
        stopped = sampler.over or (decoder is not None and decoder.stopped)
        if stopped or len(reply) >= spec.max_new_tokens or row.full([token]) is not None:
            finish = "stop" if stopped else "length"
            break
        logits = await row.read([token])
    if decoder is not None and (rest := decoder.finish()) and on_text is not None:
        on_text(rest)
    cost.generated, cost.decode = len(reply), perf_counter() - began
    text = decoder.text if decoder is not None else ""
    return Generated(reply, text, finish, row.segments, cost, sampler.whole)


def _compact(segments: tuple[KV, ...]) -> tuple[KV, ...]:
    """The last two segments as one, so that a long reply is not a long list."""
    return (*segments[:-2], concat(segments[-2:])) if len(segments) > 2 else segments
