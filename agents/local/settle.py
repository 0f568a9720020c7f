"""Settle every edge of a turn before its prompt is computed: graft, fuse, or fall back to text."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cachegraph.channels.cache.graft import is_of_a_long_row, why_too_long
from cachegraph.channels.cache.shared_prompt import SharedPrompt
from cachegraph.channels.choose_channel import nothing_private
from cachegraph.channels.payload import KVSpan
from cachegraph.engine.engine import Engine
from cachegraph.errors import ChannelError, ModelError

from ..prompt.prompt import Prompt, Slot
from ..prompt.render_threads import TextWork
from .ablation import mismatched_prompt, received_cache
from .align_prompt import share_prompt, why_not_shared
from .graft import PromptGrafts
from .inbox import FuseDelivery, Inbox
from .render_prompt import PromptRenderer

__all__ = ["EdgeSettler", "SettledPrompt"]


@dataclass(frozen=True, eq=False)
class SettledPrompt:
    """A tokenized prompt whose edges are all settled."""

    prompt: Prompt
    grafts: Sequence[KVSpan | None]  # by part of the prompt, the entries to insert
    seconds: float = 0.0  # spent moving grafts to their positions
    sharing: Sequence[FuseDelivery] = ()  # deliveries whose sharers correct this prompt
    shared: SharedPrompt | None = None  # its alignment with the sharers; None: no sharer corrects anything

    def behind(self, prefix: KVSpan) -> "SettledPrompt":
        """This prompt with trained entries in front. Raises ChannelError if it has caches of other agents."""
        if self.shared is not None or any(span is not None for span in self.grafts):
            raise ChannelError("a trained prefix precedes words alone, and this prompt has caches of other agents")
        prompt = replace(self.prompt, parts=[Slot(""), *self.prompt.parts])
        return replace(self, prompt=prompt, grafts=[prefix, *self.grafts])


class EdgeSettler:
    """Settles the edges of one turn. Up to `reply` tokens may follow the prompt."""

    def __init__(self, engine: Engine, inbox: Inbox, renderer: PromptRenderer, reply: int, work: TextWork):
        self._engine = engine
        self._inbox = inbox
        self._renderer = renderer
        self._reply = reply
        self._work = work

    async def settle(self) -> SettledPrompt:
        """Settle every edge. Raises ChannelError if the recipe forbids a fallback, ModelError if the prompt is empty.

        Payloads and plans settle most edges before rendering. The others depend on the prompt's tokens: their number,
        positions and alignment. If one of them does not fit, its text replaces its slot, and the prompt is rendered
        again.
        """
        self._settle_by_payloads()
        while True:
            prompt = await self._renderer.prompt()
            if not prompt.parts:
                raise ModelError(f"the prompt of agent {self._inbox.agent!r} is empty; give it something to read")
            if (settled := await self._settle_by_tokens(prompt)) is not None:
                return settled

    def _settle_by_payloads(self) -> None:
        sharing, control = self._inbox.fuses(), self._inbox.turn.control
        caches = [received_cache(fuse.delivery, control) for fuse in sharing]
        reason = why_not_shared([fuse.plan for fuse in sharing], caches)
        if reason is None and any(cache is not None and is_of_a_long_row(cache.segments) for cache in caches):
            reason = "the sharer's row is so long that its keys have other RoPE frequencies"
        if reason is not None:
            self._fall_back(sharing, reason)
        fusing = {fuse.sender for fuse in self._inbox.fuses()}
        for graft in self._inbox.grafts():
            cache = received_cache(graft.delivery, control)
            has_something = cache is not None and cache.has_private((), graft.plan.carries)
            if graft.sender in self._renderer.printed - fusing and not has_something:
                self._inbox.fall_back(graft.delivery, nothing_private(graft.sender, self._inbox.agent))

    async def _settle_by_tokens(self, prompt: Prompt) -> SettledPrompt | None:
        """Settle the edges that depend on the tokens; None if an edge has fallen back."""
        sharing, shared = self._inbox.fuses(), None
        if sharing:
            try:
                shared = await self._share(prompt, sharing)
                self._check_lengths(shared, sharing)
            except ChannelError as error:
                self._fall_back(sharing, str(error))
                return None
            if not _corrects_anything(shared, sharing):
                shared = None  # compute the prompt without these edges
        if not self._inbox.grafts():
            return SettledPrompt(prompt, [None] * len(prompt.parts), 0.0, sharing, shared)
        grafts = PromptGrafts(self._engine, self._inbox, self._reply)
        positions = None if shared is None else shared.positions
        taken = await grafts.take(prompt, positions, alone=shared is None)
        return None if taken is None else SettledPrompt(prompt, taken, grafts.seconds, sharing, shared)

    def _fall_back(self, sharing: Sequence[FuseDelivery], reason: str) -> None:
        for fuse in sharing:
            self._inbox.fall_back(fuse.delivery, reason)

    async def _share(self, prompt: Prompt, sharing: Sequence[FuseDelivery]) -> SharedPrompt:
        """Align the prompt between receiver and sharers. Raises ChannelError if that is impossible."""
        control = self._inbox.turn.control
        caches = [received_cache(fuse.delivery, control) for fuse in sharing]
        plans = [fuse.plan for fuse in sharing]
        shared = await self._work.run(lambda: share_prompt(prompt, plans, caches))
        if isinstance(prompt.parts[-1], Slot) and any(plan.include_response for plan in plans):
            raise ChannelError("the prompt ends with a graft, and no sharer can read a reply behind a graft")
        if control is None or control.other is None or plans[0].reads == "own-prompt":
            return shared
        other = await self._renderer.for_turn(control.other).prompt()
        return mismatched_prompt(shared, await self._work.run(lambda: share_prompt(other, plans, caches)))

    def _check_lengths(self, shared: SharedPrompt, sharing: Sequence[FuseDelivery]) -> None:
        """Raise ChannelError if a row of receiver or sharer may exceed its model's RoPE limit."""
        rows = [(self._engine.model, shared.ids, shared.positions)]
        rows += [
            (fuse.plan.sharer.model, read.ids, read.positions)
            for fuse, read in zip(sharing, shared.sharers, strict=True)
        ]
        for model, ids, positions in rows:
            length = len(ids) if positions is None or not len(positions) else int(positions[-1]) + 1
            if reason := why_too_long(model, length + self._reply):
                raise ChannelError(reason)


def _corrects_anything(shared: SharedPrompt, sharing: Sequence[FuseDelivery]) -> bool:
    """Whether any sharer has an open gate and a position to correct."""
    return any(
        fuse.plan.fuser.open_layers and any(index in stretch.pairs for stretch in shared.stretches)
        for index, fuse in enumerate(sharing)
    )
