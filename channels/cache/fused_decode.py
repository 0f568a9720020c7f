"""Decode with sharers that also read the reply: they correct every new position before anything attends to it.

A new token's correction is computed from its K and V in an uncorrected row, as in the reference implementation (arXiv
2510.03215). Each token therefore costs the receiver two passes: one in that row, and one that attends to the corrected
entries. Only fusers trained for this use it (`include_response`).
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cachegraph.common.run_all import run_all
from cachegraph.engine.engine import Engine
from cachegraph.engine.kv.cache import KV, LayerKV, concat
from cachegraph.engine.request import Cost, Generated, Prefilled
from cachegraph.engine.sampling.sampler import sample
from cachegraph.engine.spec import GenerateSpec
from cachegraph.errors import ModelError

from .apply_fuser import FuserInput, FusionMode, fuse_layers
from .edge_plan import FusePlan
from .fused_prefill import as_read, receiver_rope

__all__ = ["FusedRow", "ReplySharers", "fused_generate"]


@dataclass(frozen=True, eq=False)
class ReplySharers:
    """The sharers that correct a reply: plans, rows, and the receiver's uncorrected row from `fused_prefill`.

    A row's segments have layers of (1, kv_heads, positions, head_dim).
    """

    plans: Sequence[FusePlan]
    rows: Sequence[tuple[KV, ...]]
    uncorrected: tuple[KV, ...]
    mode: FusionMode = "parallel"
    grafted: int = 0  # leading positions that only the receiver has


class FusedRow:
    """A receiver's row and its sharers' rows, which grow together, each layer (1, kv_heads, positions, head_dim)."""

    def __init__(self, receiver: Engine, sharers: ReplySharers, segments: tuple[KV, ...]):
        self._receiver = receiver
        self._sharers = sharers
        self.segments = segments
        self.cost = Cost()

    @property
    def sharers(self) -> Sequence[tuple[KV, ...]]:
        """The rows of the sharers, in their order."""
        return self._sharers.rows

    def fork(self) -> "FusedRow":
        """Branch a row that continues from here and shares all entries so far."""
        return FusedRow(self._receiver, self._sharers, self.segments)

    def full(self, ids: Sequence[int]) -> FusePlan | None:
        """Find the first sharer whose context these tokens would exceed; None if all have room."""
        for plan, row in zip(self._sharers.plans, self._sharers.rows, strict=True):
            last = int(row[-1].positions[-1]) if row else -1
            if last + sum(map(len, plan.stand_ins(ids))) >= plan.sharer.model.info.max_positions:
                return plan
        return None

    def check(self, ids: Sequence[int]) -> None:
        """Raise ModelError if these tokens exceed a sharer's context."""
        if (full := self.full(ids)) is not None:
            model = full.sharer.model
            raise ModelError(
                f"prompt and reply are too long for {model.name!r}, which also reads the reply, and at most "
                f"{model.info.max_positions} tokens; shorten the inputs"
            )

    async def read(self, ids: Sequence[int], positions: Tensor | None = None) -> Tensor:
        """Compute the logits, (new, vocab), of these tokens. Sharers correct each position. Raises ModelError as
        `check` does.
        """
        self.check(ids)
        sharer_positions = None if positions is None else positions - self._sharers.grafted
        each_sharer = zip(self._sharers.plans, self._sharers.rows, strict=True)
        calls: list[Callable[[], Awaitable[Any]]] = [
            *(partial(_step_sharer, plan, row, ids, sharer_positions) for plan, row in each_sharer),
            partial(self._receiver.prefill, ids, self._sharers.uncorrected, positions=positions),
        ]
        *steps, own = await run_all(calls)
        assert own.kv is not None
        indices, at = torch.arange(len(ids)), own.kv.positions
        sources = [
            FuserInput(
                plan.fuser, read.kv.layers, (indices, read.there), rope=receiver_rope(plan.fuser, self._receiver, at)
            )
            for plan, read in zip(self._sharers.plans, steps, strict=True)
        ]
        kv, mode = own.kv, self._sharers.mode
        fused = await self._receiver.call(lambda: fuse_layers(kv.layers, sources, mode))
        done: Prefilled = await self._receiver.prefill(
            ids, self.segments, positions=positions, override=[LayerKV(*layer) for layer in fused.layers], logits="all"
        )
        assert done.logits is not None
        self.segments = _compact(done.segments)
        self._sharers = replace(self._sharers, rows=[step.row for step in steps], uncorrected=_compact(own.segments))
        self.cost.add(own.cost)
        self.cost.add(done.cost)
        return done.logits


class _SharerStep(NamedTuple):
    """A sharer's row after a step, the new KV as its fuser reads it, and the indices of the entries to use."""

    row: tuple[KV, ...]
    kv: KV
    there: Tensor


async def _step_sharer(
    plan: FusePlan, row: tuple[KV, ...], ids: Sequence[int], positions: Tensor | None
) -> _SharerStep:
    stand_ins = plan.stand_ins(ids)
    tokens = [token for group in stand_ins for token in group]
    done = await plan.sharer.prefill(tokens, row, positions=positions, layers=plan.fuser.sharer_depth)
    assert done.kv is not None
    last = torch.tensor([len(group) for group in stand_ins]).cumsum(0) - 1
    return _SharerStep(_compact(done.segments), await as_read(done.kv, plan.fuser, plan.sharer), last)


async def fused_generate(
    receiver: Engine,
    sharers: ReplySharers,
    ids: Sequence[int],
    segments: tuple[KV, ...],
    spec: GenerateSpec,
    *,
    positions: Tensor | None = None,
    on_text: Callable[[str], None] | None = None,
    seen: Sequence[int] = (),
) -> Generated:
    """Generate as `Engine.generate` does, with every position from `ids` on corrected (arXiv 2510.03215).

    `positions`: (ids,) int64; None: consecutive to `segments`. Raises ModelError as `check` does.
    """
    row = FusedRow(receiver, sharers, segments)
    reply = await receiver.reply(spec, [*seen, *ids])
    logits = await row.read(ids, positions)
    cost, began = replace(row.cost), perf_counter()
    while True:
        token = sample([reply.sampler], [logits[-1]])[0]
        if cost.first_token is None:
            cost.first_token = perf_counter()
        finish = reply.take(token)
        if finish is None and row.full([token]) is not None:
            finish = reply.end("length")
        if (piece := reply.read()) and on_text is not None:
            on_text(piece)
        if finish is not None:
            break
        logits = await row.read([token])
    cost.generated, cost.decode = len(reply.ids), perf_counter() - began
    return Generated(reply.ids, reply.text, finish, row.segments, cost, reply.sampler.whole)


def _compact(segments: tuple[KV, ...]) -> tuple[KV, ...]:
    """Merge the last two segments, so that a long reply does not become a long list of segments."""
    return (*segments[:-2], concat(segments[-2:])) if len(segments) > 2 else segments
