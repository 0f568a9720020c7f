"""LocalAgent: one turn of a model on this machine, from deliveries to prompt, row and reply."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter

from cachegraph.channels.cache.sent_cache import SentCache
from cachegraph.channels.payload import EdgeReport, Payload
from cachegraph.channels.peer import Peer
from cachegraph.engine.engine import Engine
from cachegraph.engine.pool import Lease, lease
from cachegraph.engine.spec import GenerateSpec, ModelSpec
from cachegraph.engine.text.tokenizer import Tokenizer
from cachegraph.errors import ModelError, RunError

from ..base import CLOSED, ChoiceScore, Reply, Scored, Timing, Tokens, ToolCall, Turn
from ..model_peer import model_peer
from ..prompt.chat_context import Frame, knows_tools
from ..prompt.prompt import PromptTemplate
from ..prompt.render_threads import TextWork
from ..run_settings import with_settings
from ..spec import AgentSpec
from ..token_budget import within_budget
from ..tools.agent_tools import AgentTools, ToolRounds, ToolSet, results_by_round
from ..tools.servers import Toolbox
from .decode import add_reply, write
from .inbox import Inbox
from .memory import Remembering
from .prefill import Prefiller
from .prompt_view import view_of
from .render_prompt import PromptRenderer
from .row import AgentRow
from .score import score_row
from .settle import EdgeSettler
from .tool_loop import ToolResultWriter, replay_tool_rounds, write_with_tools

__all__ = ["LocalAgent"]

_changing = threading.Lock()  # protects every agent's lease from runs in several threads


class LocalAgent:
    """An agent with a model of the pool. It keeps no state of a run, so many runs may use it at once."""

    def __init__(
        self,
        name: str,
        spec: AgentSpec,
        model: str | ModelSpec,
        folder: Path,
        *,
        inputs: Sequence[str],
        upstream: Sequence[str],
        toolbox: Toolbox | None = None,
        tools: ToolSet | None = None,
        allow_paths: bool = True,
    ):
        self.name = name
        self._spec = spec
        self._model = ModelSpec(source=model) if isinstance(model, str) else model
        self._folder, self._allow_paths = folder, allow_paths
        self._template = PromptTemplate(name, spec, upstream)
        self._lease: Lease | None = None
        self.loading: dict[str, dict[str, float]] = {}  # seconds by model that `open` waited for, and by phase
        self._chat = False
        if tools is None and spec.tools and toolbox:
            tools = AgentTools(name, spec.tools, spec.tool_limits, toolbox)
        self._tools = tools
        self._frame = Frame()

    async def open(self) -> None:
        """Load the model unless it is already loaded. Raises ModelError or ConfigError."""
        if self._tools is not None:
            await self._tools.open()
        if self._lease is not None:
            return
        taken = await lease(self._model, self._folder, allow_paths=self._allow_paths)
        try:
            chat, frame = await self._checked(taken.engine)
        except BaseException:
            taken.release()
            raise
        with _changing:
            if is_first := self._lease is None:  # no other run opened it meanwhile
                self.loading = {taken.engine.model.name: dict(taken.engine.model.seconds)} if taken.waited else {}
                # The lease comes last: a run that finds it uses the rest at once.
                self._chat, self._frame, self._lease = chat, frame, taken
        if not is_first:
            taken.release()

    async def _checked(self, engine: Engine) -> tuple[bool, Frame]:
        """Whether prompts go through the chat template, and what frames them. Raises ModelError if none can be read."""
        tokenizer = engine.model.tokenizer
        if tokenizer is None:
            raise ModelError(f"agent {self.name!r} can't read: the model {self._model.source!r} has no tokenizer")
        if self._spec.chat is True and not tokenizer.has_chat:
            raise ModelError(
                f"agent {self.name!r} wants a chat template, but {self._model.source!r} has none; "
                "give the model a chat_template, or leave `chat` out"
            )
        await engine.sampler(self._spec.generate)  # compiles its json_schema
        chat = tokenizer.has_chat if self._spec.chat == "auto" else self._spec.chat
        work = TextWork()
        if chat:
            await work.run(partial(self._check_template, tokenizer))
        if self._tools is None:
            return chat, Frame()
        native = chat and await work.run(partial(knows_tools, tokenizer, self._tools.schema))
        return chat, Frame(tools=self._tools.schema) if native else Frame(notes=self._tools.in_words())

    def _check_template(self, tokenizer: Tokenizer) -> None:
        """Raise ModelError if the chat template can't express this agent's turns."""
        try:
            history = tokenizer.rules.history
        except ModelError as error:
            raise ModelError(f"agent {self.name!r} can't use {self._model.source!r}: {error}") from error
        if not history and (self._spec.memory or self._tools is not None):
            needs = "remember turns" if self._spec.memory else "use tools"
            raise ModelError(
                f"agent {self.name!r} can't {needs}: the chat template of {self._model.source!r} takes no earlier "
                "turns; give the model another `chat_template`"
            )

    def peer(self) -> Peer:
        """This agent as one end of an edge."""
        engine = self._opened.engine
        reason = engine.model.why_no_cache
        why = f"{engine.model.name!r} can't take part in a cache edge: {reason}" if reason else None
        return model_peer(self.name, self._spec, self._template.reads, engine.model.name, engine, why)

    async def close(self) -> None:
        """Release the model."""
        with _changing:
            taken, self._lease = self._lease, None
        if taken is not None:
            taken.release()
        if self._tools is not None:
            await self._tools.close()

    @property
    def _opened(self) -> Lease:
        if (lease := self._lease) is None:
            raise RunError(CLOSED.format(repr(self.name)))
        return lease

    async def turn(self, turn: Turn) -> Reply:
        """Prefill the prompt with the caches delivered by the edges; decode if anyone reads the reply."""
        began = perf_counter()
        engine = self._opened.engine
        own = with_settings(self._spec, turn).generate
        inbox = Inbox(self.name, turn)
        work = TextWork()
        memory = await self._remembering(turn, work)
        renderer = self._renderer(inbox, work, memory)
        reads_only = own.max_new_tokens == 0
        generates = not reads_only and (turn.needs_text or self._tools is not None or memory is not None)
        spec = within_budget(own, turn) if generates else own
        timing, tokens = Timing(), Tokens()
        calls: list[ToolCall] = []
        row: AgentRow | None = None
        if generates or turn.needs_cache:
            layers = None if generates else turn.cache_layers
            row = await self._prefill(inbox, renderer, work, finish=not generates, layers=layers)
            timing, tokens = row.timing, row.tokens
            if memory is not None:
                await memory.take_up(row)
        payload = Payload(self.name)
        ids: list[int] = []
        remembered: list[tuple[str, str]] | None = None
        if generates:
            assert row is not None
            read = len(row.ids)
            keeping = turn if memory is None else replace(turn, needs_cache=True)
            row = await self._write(row, spec, keeping, began, calls, work)
            payload.text, payload.data = row.text, row.data
            ids = row.ids[read:]
            if memory is not None:
                remembered = memory.add(renderer.own, row.text, row)
        elif reads_only:
            payload.text = await renderer.text()
        else:
            # A stored row suffices for decoding; keeping the deliveries would chain all rounds of a loop in memory.
            alone = row is not None and row.sharers is None and row.can_reopen
            kept = replace(turn, deliveries=()) if alone else turn
            payload.write = lambda: self._write_later(kept, row)
        if turn.needs_cache and row is not None:
            payload.cache = row.sent_cache(engine.model.identity, turn.id or self.name, turn.cache_layers)
        timing.total = perf_counter() - began
        report = memory.report if memory is not None else None
        return Reply(
            payload,
            timing,
            tokens,
            _reports(turn, inbox),
            ids,
            tool_calls=calls,
            memory=report,
            remembered=remembered,
            finish_reason=row.finish if row is not None else None,
        )

    async def rebuild(self, turn: Turn, ids: Sequence[int], calls: Sequence[ToolCall] = ()) -> SentCache:
        """Recompute an earlier turn's cache by prefilling its prompt and reply; decodes nothing and calls no tool."""
        engine = self._opened.engine
        work = TextWork()
        inbox = Inbox(self.name, turn)
        renderer = self._renderer(inbox, work, await self._remembering(turn, work))
        layers = turn.cache_layers if self._tools is None else None
        row = await self._prefill(inbox, renderer, work, finish=True, reply=ids, layers=layers)
        name = turn.id or self.name
        stop = with_settings(self._spec, turn).generate.stop
        if self._tools is None:
            add_reply(engine, name, row, ids, stop)
        else:
            writer, tools = self._tool_results(work), self._tools.names
            await replay_tool_rounds(engine, self.name, row, turn, ids, stop, results_by_round(calls), tools, writer)
        return row.sent_cache(engine.model.identity, name, turn.cache_layers)

    async def _write(
        self, row: AgentRow, spec: GenerateSpec, turn: Turn, began: float, calls: list[ToolCall], work: TextWork
    ) -> AgentRow:
        engine = self._opened.engine
        if self._tools is None:
            return await write(engine, self.name, spec, row, turn, began)
        rounds = ToolRounds(self.name, self._tools, calls, turn.on_tool)
        return await write_with_tools(engine, self.name, spec, row, turn, began, rounds, self._tool_results(work))

    def _tool_results(self, work: TextWork) -> ToolResultWriter:
        tokenizer = self._opened.engine.model.tokenizer
        assert tokenizer is not None
        return ToolResultWriter(self._frame.tokenizer(tokenizer), self._chat, work)

    async def score(self, turn: Turn, choices: Sequence[str], *, verbatim: bool = False) -> list[ChoiceScore]:
        """Score each choice as a reply to the turn, on one prefill of the prompt that `turn` would compute.

        In a chat, a choice follows the template directly. In a plain prompt it is tokenized together with the prompt's
        end, separated by a space if there is no white space, unless `verbatim`. Raises
        InputError for an empty choice, ModelError if one does not fit the model's context.
        """
        return (await self.judge(turn, choices, verbatim=verbatim)).scores

    async def judge(self, turn: Turn, choices: Sequence[str], *, verbatim: bool = False) -> Scored:
        """Score the choices, and report the edges as `turn` does: an edge may fall back during prefill."""
        inbox, work = Inbox(self.name, turn), TextWork()
        row = await self._prefill(inbox, self._renderer(inbox, work), work, finish=False)
        scores = await score_row(self._opened.engine, row, choices, chat=self._chat, verbatim=verbatim)
        return Scored(scores, _reports(turn, inbox))

    async def _prefill(
        self,
        inbox: Inbox,
        renderer: PromptRenderer,
        work: TextWork,
        *,
        finish: bool,
        reply: Sequence[int] = (),
        layers: int | None = None,
    ) -> AgentRow:
        """Settle all edges, then compute the prompt once. For the arguments see `Prefiller.prefill`."""
        engine, reply_room = self._opened.engine, with_settings(self._spec, inbox.turn).generate.max_new_tokens
        settled = await EdgeSettler(engine, inbox, renderer, reply_room, work).settle()
        if inbox.turn.control is not None and inbox.turn.control.prefix is not None:
            settled = settled.behind(inbox.turn.control.prefix)
        row = await Prefiller(engine, self._spec.fusion, inbox).prefill(
            settled, finish=finish, reply=reply, layers=layers
        )
        if inbox.turn.on_prefill is not None and engine.model.tokenizer is not None:
            inbox.turn.on_prefill(view_of(settled, inbox, engine.model.tokenizer))
        return row

    def _renderer(self, inbox: Inbox, work: TextWork, memory: Remembering | None = None) -> PromptRenderer:
        tokenizer = self._opened.engine.model.tokenizer
        assert tokenizer is not None
        frame = self._frame if memory is None else replace(self._frame, history=memory.history)
        reads_only = with_settings(self._spec, inbox.turn).generate.max_new_tokens == 0
        return PromptRenderer(self._template, tokenizer, inbox, frame, work, chat=self._chat, reads_only=reads_only)

    async def _remembering(self, turn: Turn, work: TextWork) -> Remembering | None:
        if turn.memory is None or self._spec.generate.max_new_tokens == 0:
            return None
        return await work.run(partial(Remembering, self.name, turn.memory, self._opened.engine))

    async def _write_later(self, turn: Turn, row: AgentRow | None) -> str:
        """Decode the reply for a reader that appears after the turn, from the turn's cache if there is one."""
        again = replace(turn, needs_text=True, needs_cache=False, on_text=None, on_prefill=None)
        if row is not None and row.sharers is None and row.can_reopen:
            row = replace(row, timing=Timing(), tokens=Tokens())
            row.reopen()
            spec = with_settings(self._spec, turn).generate
            return (await write(self._opened.engine, self.name, spec, row, again, perf_counter())).text
        return (await self.turn(again)).payload.text or ""


def _reports(turn: Turn, inbox: Inbox) -> dict[str, EdgeReport]:
    return {delivery.route.edge.sender: inbox.report(delivery) for delivery in turn.deliveries}
