"""Decoding with sharers that read along: every new position is corrected before anything attends to it.

Each token costs the receiver two passes, as in the reference: one to learn the token's own K and V, one that attends
to the corrected ones. It is for fusers that were trained so (`include_response`).
"""

from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor

from cachegraph.engine.engine import Engine
from cachegraph.engine.kv import KV, LayerKV, concat
from cachegraph.engine.request import Cost, Generated, Prefilled
from cachegraph.engine.sampling import Sampler
from cachegraph.engine.spec import GenerateSpec
from cachegraph.engine.tokens import TextDecoder

from .plans import FusePlan
from .residual import Source, fuse_layers

__all__ = ["FusedRow", "fused_generate"]


class FusedRow:
    """A receiver's row and its sharers' rows, read on together."""

    def __init__(self, receiver: Engine, sharers: Sequence[tuple[FusePlan, tuple[KV, ...]]], segments: tuple[KV, ...]):
        self._receiver = receiver
        self._plans = [plan for plan, _ in sharers]
        self._rows = [row for _, row in sharers]
        self.segments = segments
        self.cost = Cost()

    async def read(self, ids: Sequence[int], positions: Tensor | None = None) -> Tensor:
        """Logits (new, vocab) behind these tokens, whose positions all sharers correct."""
        own = await self._receiver.prefill(ids, self.segments, positions=positions)
        assert own.kv is not None
        sources = []
        for index, plan in enumerate(self._plans):
            tokens = plan.aligner.tokens(ids) if plan.aligner is not None else ids
            theirs = await plan.sharer.prefill(tokens, self._rows[index])
            assert theirs.kv is not None
            self._rows[index] = _compact(theirs.segments)
            sources.append(Source(plan.fuser, theirs.kv.layers))
        kv = own.kv
        fused = await self._receiver.call(lambda: fuse_layers(kv.layers, sources, "sequential"))
        done: Prefilled = await self._receiver.prefill(
            ids, self.segments, positions=positions, override=[LayerKV(*layer) for layer in fused.layers], logits="all"
        )
        assert done.logits is not None
        self.segments = _compact(done.segments)
        self.cost.add(own.cost)
        self.cost.add(done.cost)
        return done.logits


async def fused_generate(
    receiver: Engine,
    sharers: Sequence[tuple[FusePlan, tuple[KV, ...]]],
    ids: Sequence[int],
    segments: tuple[KV, ...],
    spec: GenerateSpec,
    *,
    positions: Tensor | None = None,
    on_text: Callable[[str], None] | None = None,
) -> Generated:
    """As `Engine.generate`, with every position from `ids` on corrected."""
    row = FusedRow(receiver, sharers, segments)
    model = receiver.model
    sampler = Sampler(spec, model.info.eos_ids)
    decoder = TextDecoder(model.tokenizer.decode, spec.stop) if model.tokenizer is not None else None
    reply: list[int] = []
    logits = await row.read(ids, positions)
    while True:
        token = sampler.choose(logits[-1], [*ids, *reply], len(reply))
        if token in model.info.eos_ids and not spec.ignore_eos:
            return _done(row, reply, decoder, "eos", on_text)
        reply.append(token)
        row.cost.generated += 1
        if decoder is not None and (piece := decoder.push(token)) and on_text is not None:
            on_text(piece)
        if decoder is not None and decoder.stopped:
            return _done(row, reply, decoder, "stop", on_text)
        if len(reply) >= spec.max_new_tokens:
            return _done(row, reply, decoder, "length", on_text)
        logits = await row.read([token])


def _done(
    row: FusedRow,
    reply: list[int],
    decoder: TextDecoder | None,
    finish: Literal["eos", "stop", "length"],
    on_text: Callable[[str], None] | None,
) -> Generated:
    if decoder is not None and (rest := decoder.finish()) and on_text is not None:
        on_text(rest)
    return Generated(reply, decoder.text if decoder is not None else "", finish, row.segments, row.cost)


def _compact(segments: tuple[KV, ...]) -> tuple[KV, ...]:
    """The last two segments as one, so that a long reply is not a long list."""
    return (*segments[:-2], concat(segments[-2:])) if len(segments) > 2 else segments
