"""Render and tokenize the prompt of one turn, with slots for the edges that graft."""

from collections.abc import Mapping, Sequence
from typing import Any

from cachegraph.channels.payload import JOINT
from cachegraph.engine.text.tokenizer import Tokenizer

from ..base import Turn
from ..prompt.chat_context import Frame
from ..prompt.prompt import Message, Prompt, PromptTemplate, handed_over_by, readable, tokenize
from ..prompt.render_threads import TextWork
from .inbox import Inbox

__all__ = ["PromptRenderer"]


class PromptRenderer:
    """Renders the prompt of one turn. Edges that fell back since the last rendering are rendered as text."""

    def __init__(
        self,
        template: PromptTemplate,
        tokenizer: Tokenizer,
        inbox: Inbox,
        frame: Frame,
        work: TextWork,
        *,
        chat: bool,
        reads_only: bool,
    ):
        self.own: list[Message] = []  # rendered messages of the agent's own templates
        self._template = template
        self._tokenizer = frame.tokenizer(tokenizer)
        self._inbox = inbox
        self._frame = frame
        self._work = work
        self._chat = chat
        self._reads_only = reads_only
        self._plain = tokenizer

    @property
    def printed(self) -> frozenset[str]:
        """The inputs and senders that the prompt always prints whole."""
        return self._template.reads.whole

    async def prompt(self) -> Prompt:
        """Render and tokenize the prompt in a thread."""
        values, slots = await self._values()

        def make() -> Prompt:
            return tokenize(self._messages(values, slots), self._tokenizer, self._chat)

        prompt = await self._work.run(make)
        self._report(prompt.messages)
        return prompt

    async def text(self) -> str:
        """Render the text of the prompt, which an agent that only reads transfers."""
        values, slots = await self._values()
        self._report(await self._work.run(lambda: self._messages(values, slots)))
        return JOINT.join(message.content.text for message in self.own if message.role == "user")

    def for_turn(self, turn: Turn) -> "PromptRenderer":
        """Create a renderer for another turn of this agent."""
        return PromptRenderer(
            self._template,
            self._plain,
            Inbox(self._inbox.agent, turn),
            self._frame,
            TextWork(),
            chat=self._chat,
            reads_only=self._reads_only,
        )

    async def _values(self) -> tuple[dict[str, Any], list[str]]:
        """The values of the templates' names, and the names that are slots."""
        values = {**self._inbox.turn.inputs, **await self._inbox.texts()}
        return values, [graft.delivery.route.edge.sender for graft in self._inbox.grafts()]

    def _messages(self, values: Mapping[str, Any], slots: Sequence[str]) -> list[Message]:
        self.own = self._template.messages(values, slots)
        if self._reads_only:  # its prompt serves as its reply, so its own text gets its name as origin
            turn = self._inbox.turn.id or self._inbox.agent
            self.own = [handed_over_by(message, turn) for message in self.own]
        return self._frame.around(self.own)

    def _report(self, messages: Sequence[Message]) -> None:
        if self._inbox.turn.on_prompt is not None:
            self._inbox.turn.on_prompt(readable(messages))
