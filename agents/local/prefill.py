"""Reading a prompt: the agent's own tokens, grafted KV in its slots, and corrections by sharers that read along."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cachegraph.channels.cache.edge_plan import FusePlan
from cachegraph.channels.cache.fused_decode import FusedRow, ReplySharers
from cachegraph.channels.cache.fused_prefill import Sharer, fused_prefill
from cachegraph.channels.cache.graft import is_of_a_long_row, why_too_long
from cachegraph.channels.cache.sent_cache import SentCache
from cachegraph.channels.cache.shared_prompt import SharedPrompt, make_room
from cachegraph.channels.payload import JOINT, KVSpan, Origin
from cachegraph.engine.engine import Engine
from cachegraph.engine.kv.cache import KV
from cachegraph.engine.request import Cost
from cachegraph.engine.text.tokenizer import Tokenizer
from cachegraph.errors import ChannelError, ModelError

from ..base import Delivery, FinishReason, Timing, Tokens
from ..prompt.chat_context import Frame
from ..prompt.prompt import Message, Piece, Prompt, PromptTemplate, Slot, handed_over_by, readable, tokenize
from ..prompt.render_threads import TextWork
from ..spec import AgentSpec
from .ablation import mismatched_prompt, received_cache, zeros
from .align_prompt import share_prompt
from .graft import Grafting
from .inbox import Inbox

__all__ = ["AgentRow", "Reader"]


@dataclass(eq=False)
class AgentRow:
    """An agent's row: what is computed, what is known and still to be computed, and what it has cost."""

    segments: tuple[KV, ...] = ()
    pending: list[int] = field(default_factory=list)
    positions: Tensor | None = None  # of the pending tokens, where they don't follow on
    ids: list[int] = field(default_factory=list)  # with the pending ones
    origins: list[Origin | None] = field(default_factory=list)
    sharers: ReplySharers | None = None  # that also correct what follows
    corrected: bool = False  # sharers have corrected something in it
    text: str = ""
    data: Any = None  # the reply as a JSON value, where it is one by schema
    finish: FinishReason | None = None  # why the reply ended
    ending: str = ""  # the prompt's text behind its last slot
    timing: Timing = field(default_factory=Timing)
    tokens: Tokens = field(default_factory=Tokens)

    def add_cost(self, cost: Cost) -> None:
        self.timing.queued += cost.queued
        self.timing.prefill += cost.prefill
        self.timing.decode += cost.decode
        self.tokens.prefilled += cost.prefilled
        self.tokens.generated += cost.generated
        self.tokens.reused += cost.reused
        self.tokens.kv_bytes = max(self.tokens.kv_bytes, cost.kv_bytes)

    @property
    def can_reopen(self) -> bool:
        """Whether the last token can be taken back: no recurrent state is bound to it."""
        return bool(self.segments) and self.segments[-1].state is None

    def reopen(self) -> None:
        """Forget the last token's KV, so that it is computed once more and decoding can begin with it."""
        *front, last = self.segments
        self.segments = (*front, last.select(slice(0, -1)))
        self.pending, self.positions = self.ids[-1:], last.positions[-1:]

    def expect(self, reply: Sequence[int]) -> None:
        """Tokens that are known to follow become pending too."""
        if self.positions is not None:
            following = self.positions[-1] + 1 + torch.arange(len(reply))
            self.positions = torch.cat([self.positions, following.to(self.positions)])
        self.pending = [*self.pending, *reply]

    def sent_cache(self, identity: str, sender: str) -> SentCache:
        """The row for others to take from."""
        return SentCache(self.segments, self.ids, self.origins, identity, sender, corrected=self.corrected)


class Reader:
    """One agent's reading of one turn's prompt."""

    def __init__(
        self,
        engine: Engine,
        spec: AgentSpec,
        template: PromptTemplate,
        chat: bool,
        inbox: Inbox,
        frame: Frame = Frame(),
        work: TextWork | None = None,
    ):
        self._engine = engine
        self._work = work or TextWork()
        self._frame = frame
        self.own: list[Message] = []  # what the agent's templates made, once it is read
        self._spec = spec
        self._template = template
        self._chat = chat
        self._inbox = inbox

    async def prompt_text(self) -> str:
        """The prompt alone, as an agent that writes nothing hands it over."""
        values, slots = await self._values()
        self._told(await self._work.run(lambda: self._messages(values, slots)))
        return JOINT.join(message.content.text for message in self.own if message.role == "user")

    async def read(self, *, finish: bool, reply: Sequence[int] = ()) -> AgentRow:
        """Read all of the prompt but what decoding begins with; all of it, and a known reply, where `finish`."""
        row = await self._read(await self._prompt())
        self._check_room(row)
        if finish and (row.pending or reply):
            row.expect(reply)
            await self._finish(row)
        return row

    async def _read(self, prompt: Prompt) -> AgentRow:
        if not prompt.parts:
            raise ModelError(f"the prompt of agent {self._inbox.agent!r} is empty; give it something to read")
        if self._inbox.fuses():
            return await self._read_with_sharers(prompt)
        return await self._read_with_grafts(prompt) if self._inbox.grafts() else self._unread(prompt)

    async def _read_again(self) -> AgentRow:
        """Some edge fell back, so the prompt is another one now."""
        return await self._read(await self._prompt())

    async def _prompt(self) -> Prompt:
        """The prompt as tokens, with what has fallen back by now as text. Rendered and tokenized in a thread."""
        values, slots = await self._values()

        def make() -> Prompt:
            return tokenize(self._messages(values, slots), self._tokenizer, self._chat)

        prompt = await self._work.run(make)
        self._told(prompt.messages)
        return prompt

    async def _finish(self, row: AgentRow) -> None:
        if row.sharers is not None:
            fused = FusedRow(self._engine, row.sharers, row.segments)
            await fused.read(row.pending, row.positions)
            row.segments, cost = fused.segments, fused.cost
        else:
            seen = row.ids[: len(row.ids) - len(row.pending)]
            done = await self._engine.prefill(row.pending, row.segments, positions=row.positions, seen=seen)
            row.segments, cost = done.segments, done.cost
        row.pending = []
        row.add_cost(cost)

    @property
    def _tokenizer(self) -> Tokenizer:
        assert self._engine.model.tokenizer is not None
        return self._frame.tokenizer(self._engine.model.tokenizer)

    async def _values(self) -> tuple[dict[str, Any], list[str]]:
        """What the templates may name, and of it the slots."""
        values = {**self._inbox.turn.inputs, **await self._inbox.texts()}
        return values, [each.route.edge.sender for each, _ in self._inbox.grafts()]

    def _messages(self, values: Mapping[str, Any], slots: Sequence[str]) -> list[Message]:
        self.own = self._template.messages(values, slots)
        if self._spec.generate.max_new_tokens == 0:  # what it hands over is its prompt, so its own words are its reply
            turn = self._inbox.turn.id or self._inbox.agent
            self.own = [handed_over_by(message, turn) for message in self.own]
        return self._frame.around(self.own)

    def _told(self, messages: Sequence[Message]) -> None:
        if self._inbox.turn.on_prompt is not None:
            self._inbox.turn.on_prompt(readable(messages))

    def _unread(self, prompt: Prompt) -> AgentRow:
        pieces = [part for part in prompt.parts if isinstance(part, Piece)]
        ids = [token for piece in pieces for token in piece.ids]
        origins = [origin for piece in pieces for origin in piece.origins]
        return AgentRow(pending=ids, ids=list(ids), origins=origins, ending=_ending(prompt))

    def _check_room(self, row: AgentRow) -> None:
        limit, model = self._engine.model.info.max_positions, self._engine.model.name
        if len(row.ids) >= limit:
            raise ModelError(
                f"the prompt of agent {self._inbox.agent!r} has {len(row.ids)} tokens, but {model!r} reads at most "
                f"{limit} with its reply; shorten the inputs"
            )

    # Grafts

    async def _read_with_grafts(self, prompt: Prompt) -> AgentRow:
        """Own pieces are prefilled between the slots; a slot's KV is moved behind what stands before it."""
        grafting = Grafting(self._engine, self._inbox, self._spec.generate.max_new_tokens)
        taken = await grafting.take(prompt)
        return await self._read_again() if taken is None else await self._read_around(prompt, taken, grafting.seconds)

    async def _read_around(self, prompt: Prompt, taken: Sequence[KVSpan | None], seconds: float) -> AgentRow:
        row = AgentRow(ending=_ending(prompt))
        row.timing.transfer += seconds
        for part, brought in zip(prompt.parts, taken, strict=True):
            if isinstance(part, Piece):
                row.pending += part.ids
                row.ids += part.ids
                row.origins += part.origins
            elif brought is not None:
                await self._compute_pending(row)
                self._append(row, brought)
        self._keep_one_pending(row)
        return row

    async def _compute_pending(self, row: AgentRow) -> None:
        if row.pending:
            done = await self._engine.prefill(row.pending, row.segments)
            row.segments, row.pending = done.segments, []
            row.add_cost(done.cost)

    def _append(self, row: AgentRow, brought: KVSpan) -> None:
        row.segments = (*row.segments, *brought.segments)
        row.ids += brought.ids
        row.origins += brought.origins
        row.tokens.reused += len(brought.ids)

    def _keep_one_pending(self, row: AgentRow) -> None:
        """Decoding begins with a token that is computed here: behind a closing slot, the last grafted one once more."""
        if not row.pending and row.segments:
            row.reopen()
            row.tokens.reused -= 1

    # Fusing

    async def _read_with_sharers(self, prompt: Prompt) -> AgentRow:
        """Grafts, if there are any, take their places in the prompt; the receiver's own positions are corrected."""
        sharing = self._inbox.fuses()
        grafting = Grafting(self._engine, self._inbox, self._spec.generate.max_new_tokens)
        try:
            reading = await self._shared_reading(prompt, sharing)
            self._check_lengths(reading, sharing)
        except ChannelError as error:
            for delivery, _ in sharing:
                self._inbox.fall_back(delivery, str(error))
            return await self._read_again()
        active = self._active(sharing, reading)
        taken = await grafting.take(prompt, reading.positions if active else None, alone=not active)
        if taken is None:
            return await self._read_again()
        if not active:  # nothing to correct: exactly the receiver without these edges
            grafts = any(brought is not None for brought in taken)
            return await self._read_around(prompt, taken, grafting.seconds) if grafts else self._unread(prompt)
        placed = _placed(prompt, taken)
        room = make_room(reading, [(token, len(brought.ids)) for token, brought in placed])
        row = await self._fuse(room, sharing, placed)
        row.ending = _ending(prompt)
        row.timing.transfer += grafting.seconds
        self._lay_out(row, prompt, taken)
        self._keep_one_pending(row)
        return row

    def _check_lengths(self, reading: SharedPrompt, sharing: Sequence[tuple[Delivery, FusePlan]]) -> None:
        """Raises ChannelError where the receiver or a sharer may grow beyond a border of its RoPE."""
        reply = self._spec.generate.max_new_tokens
        rows = [(self._engine.model, reading.ids, reading.positions)]
        rows += [
            (plan.sharer.model, read.ids, read.positions)
            for (_, plan), read in zip(sharing, reading.sharers, strict=True)
        ]
        for model, ids, positions in rows:
            length = len(ids) if positions is None or not len(positions) else int(positions[-1]) + 1
            if reason := why_too_long(model, length + reply):
                raise ChannelError(reason)
        planes = [received_cache(delivery, self._inbox.turn.control) for delivery, _ in sharing]
        if any(plane is not None and is_of_a_long_row(plane.segments) for plane in planes):
            raise ChannelError("the sharer's row is so long that its keys have other RoPE frequencies")

    async def _fuse(
        self,
        reading: SharedPrompt,
        sharing: Sequence[tuple[Delivery, FusePlan]],
        placed: Sequence[tuple[int, KVSpan]],
    ) -> AgentRow:
        sharers = [self._sharer(delivery, plan) for delivery, plan in sharing]
        grafts: dict[int, list[KV]] = {}
        for token, brought in placed:
            grafts.setdefault(token, []).extend(brought.segments)
        fused = await fused_prefill(self._engine, sharers, reading, self._spec.fusion, grafts=grafts)
        row = AgentRow(segments=fused.segments, pending=list(reading.ids[reading.end :]), corrected=True)
        row.positions = _trailing_positions(reading)
        row.add_cost(fused.receiver_cost)
        row.timing.fuse += fused.fuse_seconds
        following = [
            (plan, kv)
            for (_, plan), kv in zip(sharing, fused.sharers, strict=True)
            if plan.include_response and plan.fuser.open_layers
        ]
        if following:
            plans, rows = zip(*following, strict=True)
            count = sum(len(brought.ids) for _, brought in placed)
            row.sharers = ReplySharers(plans, rows, fused.uncorrected, self._spec.fusion, count)
        for index, (delivery, plan) in enumerate(sharing):
            report = self._inbox.report(delivery)
            report.bytes += fused.nbytes[index]
            report.positions_fused = _fused_by(reading, index) if plan.fuser.open_layers else 0
            report.seconds = {"sharer_prefill": fused.sharer_cost.prefill, "fuse": fused.fuse_seconds}
            report.residuals = fused.sizes[index].by_layer(plan.fuser)
        return row

    def _lay_out(self, row: AgentRow, prompt: Prompt, taken: Sequence[KVSpan | None]) -> None:
        """Whose text stands where in a row that was read in one go."""
        for part, brought in zip(prompt.parts, taken, strict=True):
            if isinstance(part, Piece):
                row.ids += part.ids
                row.origins += part.origins
            elif brought is not None:
                row.ids += brought.ids
                row.origins += brought.origins
                row.tokens.reused += len(brought.ids)

    async def _shared_reading(self, prompt: Prompt, sharing: Sequence[tuple[Delivery, FusePlan]]) -> SharedPrompt:
        control = self._inbox.turn.control
        planes = [received_cache(delivery, control) for delivery, _ in sharing]
        reading = await self._work.run(lambda: share_prompt(prompt, self._engine, sharing, planes))
        if isinstance(prompt.parts[-1], Slot) and any(plan.include_response for _, plan in sharing):
            raise ChannelError("the prompt ends with a graft, behind which no sharer can read the reply along")
        if control is None or control.other is None or sharing[0][1].reads == "own-prompt":
            return reading
        inbox = Inbox(self._inbox.agent, control.other)
        theirs = Reader(self._engine, self._spec, self._template, self._chat, inbox, self._frame)
        other = await theirs._prompt()
        shared = await self._work.run(lambda: share_prompt(other, self._engine, sharing, planes))
        return mismatched_prompt(reading, shared)

    def _sharer(self, delivery: Delivery, plan: FusePlan) -> Sharer:
        control = self._inbox.turn.control
        plane = received_cache(delivery, control) if plan.reads == "own-prompt" else None
        alter = zeros if control is not None and control.kind == "zero" else None
        return Sharer(plan.sharer, plan.fuser, plane.segments if plane is not None else None, alter)

    def _active(self, sharing: Sequence[tuple[Delivery, FusePlan]], reading: SharedPrompt) -> bool:
        """Whether any sharer has an open gate and a position to correct."""
        return any(
            plan.fuser.open_layers and any(index in stretch.pairs for stretch in reading.stretches)
            for index, (_, plan) in enumerate(sharing)
        )


def _ending(prompt: Prompt) -> str:
    last = prompt.parts[-1] if prompt.parts else None
    return last.text if isinstance(last, Piece) else ""


def _placed(prompt: Prompt, taken: Sequence[KVSpan | None]) -> list[tuple[int, KVSpan]]:
    """What is grafted, and the prompt's own token that it stands in front of."""
    slots = iter(prompt.slots)
    found = []
    for part, brought in zip(prompt.parts, taken, strict=True):
        if isinstance(part, Piece):
            continue
        token, _ = next(slots)
        if brought is not None:
            found.append((token, brought))
    return found


def _trailing_positions(reading: SharedPrompt) -> Tensor | None:
    return None if reading.positions is None else torch.as_tensor(reading.positions[reading.end :])


def _fused_by(reading: SharedPrompt, index: int) -> int:
    return sum(len(stretch.pairs[index].receiver) for stretch in reading.stretches if index in stretch.pairs)
