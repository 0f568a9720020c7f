"""What the edges graft into one prompt: each slot's KV at its place, or the reason why an edge hands over words."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from time import perf_counter

from torch import Tensor

from cachegraph.channels.cache.edge_plan import GraftPlan
from cachegraph.channels.cache.graft import graft, why_no_state, why_other_frequencies
from cachegraph.channels.decide import nothing_private
from cachegraph.channels.payload import KVSpan
from cachegraph.engine.engine import Engine
from cachegraph.engine.kv.cache import KV
from cachegraph.engine.kv.rope import OutOfReach

from ..base import Delivery
from ..prompt.prompt import Piece, Prompt, Slot
from .ablation import received_cache, zeros
from .inbox import Inbox

__all__ = ["Grafting"]


class Grafting:
    """The grafts of one prompt. `seconds` is how long taking them took."""

    def __init__(self, engine: Engine, inbox: Inbox, reply: int):
        self._engine = engine
        self._reply = reply  # tokens that may follow
        self._inbox = inbox
        self._plans: Mapping[str, tuple[Delivery, GraftPlan]] = {
            delivery.route.edge.sender: (delivery, plan) for delivery, plan in inbox.grafts()
        }
        self._fusing = {delivery.route.edge.sender for delivery, _ in inbox.fuses()}
        self.seconds = 0.0

    async def take(
        self, prompt: Prompt, positions: Tensor | None = None, *, alone: bool = True
    ) -> list[KVSpan | None] | None:
        """By part of the prompt, what is grafted there; None if an edge had to fall back instead.

        `positions` are those of the prompt's own tokens where they leave gaps. `alone`: no sharer corrects what stands
        between the slots.
        """
        if self._fell_for_lost_slots(prompt):
            return None
        seen, own, grafted, used = set(prompt.seen), 0, 0, set[str]()
        front: list[int] | None = [] if alone else None
        out: list[KVSpan | None] = []
        began, fell = perf_counter(), False
        for part in prompt.parts:
            if isinstance(part, Piece):
                own += len(part.ids)
                front = None if front is None else [*front, *part.ids]
                out.append(None)
                continue
            delivery, plan = self._plans[part.sender]
            brought = None
            if part.sender not in used:  # a slot that is written twice is filled once
                used.add(part.sender)
                start = own if positions is None or not own else int(positions[own - 1]) + 1
                try:
                    brought = await self._graft(delivery, plan, start + grafted, seen, front)
                except OutOfReach as error:
                    self._inbox.fall_back(delivery, str(error))
                    return None
                if brought is not None and (reason := self._why_no_state(delivery, brought, part is prompt.parts[-1])):
                    self._inbox.fall_back(delivery, reason)
                    fell, brought = True, None
                elif brought is None and not self._is_there(delivery, plan, prompt.seen):
                    self._inbox.fall_back(delivery, nothing_private(part.sender, self._inbox.agent))
                    fell = True
            if brought is not None:
                grafted += len(brought.ids)
                front = None if front is None else [*front, *brought.ids]
                seen |= brought.names
            out.append(brought)
        self.seconds = perf_counter() - began
        if fell:
            return None
        if grafted and (
            reason := self._why_too_far(own + grafted, [kv for span in out if span for kv in span.segments])
        ):
            for delivery, _ in self._plans.values():
                self._inbox.fall_back(delivery, reason)
            return None
        return out

    def _fell_for_lost_slots(self, prompt: Prompt) -> bool:
        """A chat template that rewrites what it is given (in capitals, say) leaves no place for what it can't know."""
        slots = {span.origin for message in prompt.messages for span in message.content.spans if span.kind == "slot"}
        lost = slots - {part.sender for part in prompt.parts if isinstance(part, Slot)}
        for sender, (delivery, _) in self._plans.items():
            if sender in lost:
                self._inbox.fall_back(
                    delivery,
                    f"the chat template of {self._engine.model.name!r} changes the text that it is given, so there is "
                    f"no place in it for what {sender!r} hands over",
                )
        return not lost.isdisjoint(self._plans)

    def _why_too_far(self, count: int, grafts: Sequence[KV]) -> str | None:
        """Why a prompt of so many positions, these grafts among them, can't be read."""
        model = self._engine.model
        if count >= model.info.max_positions:
            return f"with it the prompt has {count} positions, too many for the model"
        return why_other_frequencies(model, grafts, count, self._reply)

    def _why_no_state(self, delivery: Delivery, brought: KVSpan, closes: bool) -> str | None:
        plane = received_cache(delivery, self._inbox.turn.control)
        return None if plane is None else why_no_state(plane, self._engine.model, brought, closes=closes)

    async def _graft(
        self, delivery: Delivery, plan: GraftPlan, position: int, seen: set[str], front: Sequence[int] | None
    ) -> KVSpan | None:
        control = self._inbox.turn.control
        plane = received_cache(delivery, control)
        if plane is not None and control is not None and control.kind == "zero":  # before a translator reads it
            plane = replace(plane, segments=tuple(map(zeros, plane.segments)))
        brought = None
        if plane is not None:
            model, already = self._engine.model, frozenset(seen)
            brought = await self._engine.call(
                lambda: graft(plane, model, position, already, plan.carries, plan.translation, front)
            )
        if brought is not None:
            report = self._inbox.report(delivery)
            report.bytes += brought.nbytes
            report.positions_grafted = len(brought.ids)
        return brought

    def _is_there(self, delivery: Delivery, plan: GraftPlan, read: set[str]) -> bool:
        """Whether nothing is missing: other grafts brought all that the receiver has not read itself, or the same edge
        fuses what both have read."""
        if delivery.route.edge.sender in self._fusing:
            return True
        plane = received_cache(delivery, self._inbox.turn.control)
        return plane is not None and plane.private(read, plan.carries) is not None
