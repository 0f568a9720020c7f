"""Answer requests with a recipe that is one bare model, token for token as the harness's `hf` model does.

So it also accepts what a prompt can't hold: an empty context, a context that is too long and loses its beginning, and
a text that is scored as a whole.
"""

from collections.abc import Mapping, Sequence

from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from cachegraph.agents.local.row import AgentRow
from cachegraph.agents.local.score import score_tokens
from cachegraph.engine.engine import Engine
from cachegraph.engine.spec import GenerateSpec
from cachegraph.engine.text.chat_template import render_chat_template, render_open_chat
from cachegraph.engine.text.tokenizer import Tokenizer
from cachegraph.errors import InputError, ModelError

from .player import Likelihood

__all__ = ["BarePlayer"]

Ids = list[int]


class BarePlayer:
    """Answers requests with an engine alone, without agents."""

    def __init__(self, engine: Engine, max_length: int | None):
        assert engine.model.tokenizer is not None
        self._engine = engine
        self._tokenizer: Tokenizer = engine.model.tokenizer
        self._max_length = min(max_length or engine.model.info.max_positions, engine.model.info.max_positions)

    async def likelihoods(self, context: str, continuations: Sequence[str]) -> list[Likelihood]:
        """Return the log-likelihood of each continuation; continuations of the same tokens share one prefill."""
        return await self._score([self._pair(context, text) for text in continuations])

    async def rolling(self, text: str) -> float:
        """Return the log-likelihood of a whole text, in windows of the model's context length."""
        windows = get_rolling_token_windows(self._encode(text), self._prefix, self._max_length, context_len=1)
        found = await self._score([make_disjoint_window(window) for window in windows])
        return sum(logprob for logprob, _ in found)

    async def write(self, context: str, spec: GenerateSpec) -> str:
        """Generate a reply. A context that leaves no room for it loses its beginning.

        Raises InputError for an empty context, and for a reply as long as the model's context.
        """
        room = self._max_length - spec.max_new_tokens
        if room <= 0:
            raise InputError(
                f"a reply of {spec.max_new_tokens} tokens leaves no room for a prompt: {self._engine.model.name!r} "
                f"reads at most {self._max_length} (max_gen_toks)"
            )
        ids = self._encode(context)[-room:]
        if not ids:
            raise InputError("the context is empty; give the model something to continue")
        return (await self._engine.generate(ids, (), spec)).text

    async def close(self) -> None:
        """Do nothing: the player holds no resources."""

    # Chats that the harness renders itself

    @property
    def chat_template(self) -> str | None:
        """The model's own chat template."""
        template: str | None = self._tokenizer.chat_template or self._tokenizer.raw.chat_template
        return template

    def chat(self, history: Sequence[Mapping[str, str]], reply_follows: bool) -> str:
        """Render messages with the chat template; if no reply follows, the last message stays open."""
        template = self._tokenizer.raw.get_chat_template(self._tokenizer.chat_template)
        special = self._tokenizer.raw.special_tokens_map
        if reply_follows:
            return render_chat_template(template, history, add_generation_prompt=True, **special)
        return render_open_chat(template, history, **special)

    # Tokens

    @property
    def _prefix(self) -> int:
        """The token in front of a text without a context."""
        raw = self._tokenizer.raw
        prefix: int | None = raw.bos_token_id if raw.bos_token_id is not None else raw.eos_token_id
        if prefix is None:
            raise ModelError(
                f"{self._engine.model.name!r} has neither a BOS nor an EOS token to put in front of a text "
                "without a context; choose a task whose requests have contexts"
            )
        return prefix

    def _encode(self, text: str) -> Ids:
        """Encode a text, with special tokens unless it already begins with one, as a rendered chat does."""
        raw = self._tokenizer.raw
        first = raw.bos_token or raw.eos_token
        return self._tokenizer.encode(text, special=not (first and text.startswith(first))).ids

    def _pair(self, context: str, text: str) -> tuple[Ids, Ids]:
        """Encode both texts together; white space between them belongs to the continuation."""
        if not context:
            ids = self._tokenizer.encode(text, special=False).ids
            return (ids[:1], ids[1:]) if ids[:1] == [self._prefix] else ([self._prefix], ids)
        bare = context.rstrip()
        before = self._encode(bare)
        return before, self._encode(context + text)[len(before) :]

    async def _score(self, pairs: Sequence[tuple[Ids, Ids]]) -> list[Likelihood]:
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, (before, ids) in enumerate(pairs):
            groups.setdefault(tuple(self._fit(before, ids)), []).append(index)
        likelihoods: dict[int, Likelihood] = {}
        for shared, members in groups.items():
            row = AgentRow(pending=list(shared), ids=list(shared))
            scores = await score_tokens(self._engine, row, [pairs[index][1] for index in members])
            likelihoods.update(
                (index, (score.logprob, score.greedy)) for index, score in zip(members, scores, strict=True)
            )
        return [likelihoods[index] for index in range(len(pairs))]

    def _fit(self, before: Ids, ids: Ids) -> Ids:
        """Cut the beginning of a context that doesn't fit together with its continuation; the last token isn't read."""
        if not before or not ids:
            raise InputError("a context or a continuation has no tokens; give both a text")
        if len(ids) > self._max_length:
            raise InputError(
                f"a continuation has {len(ids)} tokens, but {self._engine.model.name!r} "
                f"reads at most {self._max_length}"
            )
        return before[-(self._max_length + 1 - len(ids)) :]
