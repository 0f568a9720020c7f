"""Prefill a settled prompt: the agent's own tokens, grafts in its slots, and corrections by sharers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cachegraph.channels.cache.apply_fuser import FusionMode
from cachegraph.channels.cache.fused_decode import FusedRow, ReplySharers
from cachegraph.channels.cache.fused_prefill import FusedPrefill, Sharer, fused_prefill
from cachegraph.channels.cache.shared_prompt import SharedPrompt, make_room
from cachegraph.channels.payload import KVSpan
from cachegraph.engine.engine import Engine
from cachegraph.engine.kv.cache import KV
from cachegraph.errors import ModelError

from ..prompt.prompt import Piece, Prompt
from .ablation import received_cache, zeros
from .inbox import FuseDelivery, Inbox
from .row import AgentRow
from .settle import SettledPrompt

__all__ = ["Prefiller"]


class Prefiller:
    """Computes the prompt of one turn."""

    def __init__(self, engine: Engine, fusion: FusionMode, inbox: Inbox):
        self._engine = engine
        self._fusion = fusion
        self._inbox = inbox

    async def prefill(
        self, settled: SettledPrompt, *, finish: bool, reply: Sequence[int] = (), layers: int | None = None
    ) -> AgentRow:
        """Compute the prompt except for the tokens from which decoding starts.

        With `finish`, compute those and a known reply as well, in a prompt without caches of other agents only in the
        model's first `layers` layers. Raises ModelError if the prompt is too long.
        """
        row = _lay_out(settled)
        if finish and settled.shared is None and not any(settled.grafts):
            row.layers = layers
        self._check_room(row)
        if settled.shared is not None:
            await self._fuse(row, settled, settled.shared)
        else:
            await self._prefill_between_grafts(row, settled)
        if not row.pending and row.segments:  # a graft ends the prompt: compute its last token here
            row.reopen()
            row.tokens.reused -= 1
        if finish and (row.pending or reply):
            row.expect(reply)
            await self._finish(row)
        return row

    def _check_room(self, row: AgentRow) -> None:
        limit, model = self._engine.model.info.max_positions, self._engine.model.name
        if len(row.ids) >= limit:
            raise ModelError(
                f"the prompt of agent {self._inbox.agent!r} has {len(row.ids)} tokens, but {model!r} reads at most "
                f"{limit} with its reply; shorten the inputs"
            )

    async def _finish(self, row: AgentRow) -> None:
        if row.sharers is not None:
            fused = FusedRow(self._engine, row.sharers, row.segments)
            await fused.read(row.pending, row.positions)
            row.segments, cost = fused.segments, fused.cost
        else:
            seen = row.ids[: len(row.ids) - len(row.pending)]
            done = await self._engine.prefill(
                row.pending, row.segments, positions=row.positions, layers=row.layers, seen=seen
            )
            row.segments, cost = done.segments, done.cost
        row.pending = []
        row.add_cost(cost)

    async def _prefill_between_grafts(self, row: AgentRow, settled: SettledPrompt) -> None:
        """Compute the agent's own tokens before each graft; those after the last graft stay pending."""
        for part, span in zip(settled.prompt.parts, settled.grafts, strict=True):
            if isinstance(part, Piece):
                row.pending += part.ids
            elif span is not None:
                if row.pending:
                    done = await self._engine.prefill(row.pending, row.segments)
                    row.segments, row.pending = done.segments, []
                    row.add_cost(done.cost)
                row.segments = (*row.segments, *span.segments)

    async def _fuse(self, row: AgentRow, settled: SettledPrompt, shared: SharedPrompt) -> None:
        """Compute the prompt with its sharers. They correct the receiver's own positions, not the grafts."""
        placed = _placed(settled)
        shared = make_room(shared, [(token, len(span)) for token, span in placed])
        grafts: dict[int, list[KV]] = {}
        for token, span in placed:
            grafts.setdefault(token, []).extend(span.segments)
        sharers = [self._sharer(fuse) for fuse in settled.sharing]
        fused = await fused_prefill(self._engine, sharers, shared, self._fusion, grafts=grafts)
        row.segments, row.pending, row.corrected = fused.segments, list(shared.ids[shared.end :]), True
        row.positions = _trailing_positions(shared)
        row.add_cost(fused.receiver_cost)
        row.timing.fuse += fused.fuse_seconds
        row.sharers = self._reply_sharers(settled.sharing, fused, sum(len(span) for _, span in placed))
        self._report(settled.sharing, fused, shared)

    def _sharer(self, fuse: FuseDelivery) -> Sharer:
        control = self._inbox.turn.control
        sent = received_cache(fuse.delivery, control) if fuse.plan.reads == "own-prompt" else None
        alter = zeros if control is not None and control.kind == "zero" else None
        return Sharer(fuse.plan.sharer, fuse.plan.fuser, sent.segments if sent is not None else None, alter)

    def _reply_sharers(self, sharing: Sequence[FuseDelivery], fused: FusedPrefill, grafted: int) -> ReplySharers | None:
        """The sharers that also correct the reply; None if there are none."""
        following = [
            (fuse.plan, kv)
            for fuse, kv in zip(sharing, fused.sharers, strict=True)
            if fuse.plan.include_response and fuse.plan.fuser.open_layers
        ]
        if not following:
            return None
        plans, rows = zip(*following, strict=True)
        return ReplySharers(plans, rows, fused.uncorrected, self._fusion, grafted)

    def _report(self, sharing: Sequence[FuseDelivery], fused: FusedPrefill, shared: SharedPrompt) -> None:
        for index, fuse in enumerate(sharing):
            report = self._inbox.report(fuse.delivery)
            report.bytes += fused.nbytes[index]
            report.positions_fused = _fused_by(shared, index) if fuse.plan.fuser.open_layers else 0
            report.seconds = {"sharer_prefill": fused.sharer_cost.prefill, "fuse": fused.fuse_seconds}
            report.residuals = fused.sizes[index].by_layer(fuse.plan.fuser)


def _lay_out(settled: SettledPrompt) -> AgentRow:
    """Create the row with all tokens and origins, and no computed entries."""
    row = AgentRow(ending=_ending(settled.prompt))
    for part, span in zip(settled.prompt.parts, settled.grafts, strict=True):
        if isinstance(part, Piece):
            row.ids += part.ids
            row.origins += part.origins
        elif span is not None:
            row.ids += span.ids
            row.origins += span.origins
            row.tokens.reused += len(span)
    row.timing.transfer += settled.seconds
    return row


def _ending(prompt: Prompt) -> str:
    last = prompt.parts[-1]
    return last.text if isinstance(last, Piece) else ""


def _placed(settled: SettledPrompt) -> list[tuple[int, KVSpan]]:
    """The grafts, each with the index of the prompt's own token that follows it."""
    slots = iter(settled.prompt.slots)
    found = []
    for part, span in zip(settled.prompt.parts, settled.grafts, strict=True):
        if isinstance(part, Piece):
            continue
        token, _ = next(slots)
        if span is not None:
            found.append((token, span))
    return found


def _trailing_positions(shared: SharedPrompt) -> Tensor | None:
    return None if shared.positions is None else torch.as_tensor(shared.positions[shared.end :])


def _fused_by(shared: SharedPrompt, index: int) -> int:
    return sum(len(stretch.pairs[index].receiver) for stretch in shared.stretches if index in stretch.pairs)
