"""Take the grafts of one prompt: move each sender's KV to its slot's positions, or state why it does not fit."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter

from torch import Tensor

from cachegraph.channels.cache.graft import graft, why_no_state, why_other_frequencies
from cachegraph.channels.choose_channel import nothing_private
from cachegraph.channels.payload import KVSpan
from cachegraph.engine.engine import Engine
from cachegraph.engine.kv.cache import KV
from cachegraph.engine.kv.rope import OutOfReach

from ..prompt.prompt import Piece, Prompt, Slot
from .ablation import received_cache, zeros
from .inbox import GraftDelivery, Inbox

__all__ = ["PromptGrafts"]


@dataclass(eq=False)
class _Front:
    """The state of the row before the next part of the prompt."""

    seen: set[str]  # inputs and agents whose text the receiver has read, or will read in the rest of its prompt
    ids: list[int] | None  # tokens; None: a sharer corrects their KV
    own: int = 0  # how many of them are the prompt's own
    grafted: int = 0  # how many are grafted

    def add_own(self, ids: Sequence[int]) -> None:
        self.own += len(ids)
        if self.ids is not None:
            self.ids += ids

    def add_graft(self, span: KVSpan) -> None:
        self.grafted += len(span)
        self.seen |= span.names
        if self.ids is not None:
            self.ids += span.ids


class PromptGrafts:
    """The grafts of one prompt. `reply` more tokens may follow; `seconds` is the time spent moving KV."""

    def __init__(self, engine: Engine, inbox: Inbox, reply: int):
        self._engine = engine
        self._reply = reply
        self._inbox = inbox
        self._by_sender = {graft.sender: graft for graft in inbox.grafts()}
        self._fusing = {fuse.sender for fuse in inbox.fuses()}
        self.seconds = 0.0

    async def take(
        self, prompt: Prompt, positions: Tensor | None = None, *, alone: bool = True
    ) -> list[KVSpan | None] | None:
        """By part of the prompt, the entries to graft there; None if an edge has fallen back instead.

        `positions`, (tokens,) int64, are those of the prompt's own tokens if they have gaps. `alone`: no sharer
        corrects the tokens between the slots. Each KV layer is (1, kv_heads, positions, head_dim).
        """
        if self._has_lost_slots(prompt):
            return None
        began, fell = perf_counter(), False
        front = _Front(set(prompt.seen), [] if alone else None)
        waiting = dict(self._by_sender)  # a repeated slot is filled once
        spans: list[KVSpan | None] = []
        for part in prompt.parts:
            span = None
            if isinstance(part, Piece):
                front.add_own(part.ids)
            elif (edge := waiting.pop(part.sender, None)) is not None:
                start = front.own if positions is None or not front.own else int(positions[front.own - 1]) + 1
                try:
                    span = await self._graft(edge, start + front.grafted, front)
                except OutOfReach as error:
                    self._inbox.fall_back(edge.delivery, str(error))
                    return None
                reason = self._why_not(edge, span, prompt, closes=part is prompt.parts[-1])
                if reason is not None:
                    self._inbox.fall_back(edge.delivery, reason)
                    fell = True
                elif span is not None:
                    front.add_graft(span)
            spans.append(span)
        self.seconds = perf_counter() - began
        return None if fell or self._is_too_long(front, spans) else spans

    def _has_lost_slots(self, prompt: Prompt) -> bool:
        """Fall back if a chat template rewrites its text (to capitals, say) so that slots disappear."""
        slots = {span.origin for message in prompt.messages for span in message.content.spans if span.kind == "slot"}
        lost = slots - {part.sender for part in prompt.parts if isinstance(part, Slot)}
        for sender, edge in self._by_sender.items():
            if sender in lost:
                self._inbox.fall_back(
                    edge.delivery,
                    f"the chat template of {self._engine.model.name!r} changes the text that it is given, so there is "
                    f"no place in it for what {sender!r} hands over",
                )
        return not lost.isdisjoint(self._by_sender)

    def _why_not(self, edge: GraftDelivery, span: KVSpan | None, prompt: Prompt, *, closes: bool) -> str | None:
        """Why this graft, or its absence, does not fit the prompt; None if it does."""
        sent = received_cache(edge.delivery, self._inbox.turn.control)
        if span is not None:
            return None if sent is None else why_no_state(sent, self._engine.model, span, closes=closes)
        # Other grafts cover everything that the receiver has not read, or this edge also fuses what both have read.
        is_there = sent is not None and sent.has_private(prompt.seen, edge.plan.carries)
        return None if is_there or edge.sender in self._fusing else nothing_private(edge.sender, self._inbox.agent)

    def _is_too_long(self, front: _Front, spans: Sequence[KVSpan | None]) -> bool:
        """Fall back with all grafts if the prompt is too long with them."""
        kvs = [kv for span in spans if span is not None for kv in span.segments]
        reason = self._why_too_long(front.own + front.grafted, kvs) if kvs else None
        for edge in self._by_sender.values() if reason is not None else ():
            self._inbox.fall_back(edge.delivery, reason or "")
        return reason is not None

    def _why_too_long(self, count: int, grafts: Sequence[KV]) -> str | None:
        """Why a prompt of `count` positions can't contain these grafts; None if it can."""
        model = self._engine.model
        if count >= model.info.max_positions:
            return f"with it the prompt has {count} positions, too many for the model"
        return why_other_frequencies(model, grafts, count, self._reply)

    async def _graft(self, edge: GraftDelivery, start: int, front: _Front) -> KVSpan | None:
        """Move the sender's entries to positions from `start` on. Raises OutOfReach if that is impossible."""
        control = self._inbox.turn.control
        sent = received_cache(edge.delivery, control)
        if sent is None:
            return None
        if control is not None and control.kind == "zero":  # before translation
            sent = replace(sent, segments=tuple(map(zeros, sent.segments)))
        model, plan, cache, seen = self._engine.model, edge.plan, sent, frozenset(front.seen)
        span = await self._engine.call(
            lambda: graft(cache, model, start, seen, plan.carries, plan.translation, front.ids)
        )
        if span is not None:
            report = self._inbox.report(edge.delivery)
            report.bytes += span.nbytes
            report.positions_grafted = len(span)
        return span
