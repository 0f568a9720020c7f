"""Score given replies by their log probability: one prefill of the prompt, all choices in one batch."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from cachegraph.channels.cache.fused_decode import FusedRow
from cachegraph.common.run_all import run_all
from cachegraph.engine.engine import Engine
from cachegraph.engine.text.tokenizer import Tokenizer
from cachegraph.errors import InputError, ModelError

from ..base import ChoiceScore
from ..prompt.render_threads import TextWork
from .row import AgentRow

__all__ = ["TokenScore", "reply_tokens", "score_row", "score_tokens"]


class TokenScore(NamedTuple):
    """The natural logarithm of the tokens' probability, and whether greedy decoding would produce them."""

    logprob: float
    greedy: bool


async def score_row(
    engine: Engine, row: AgentRow, choices: Sequence[str], *, chat: bool, verbatim: bool
) -> list[ChoiceScore]:
    """Score every choice as a continuation of the row. The row's pending tokens are computed once for all choices.

    Raises InputError for a choice without tokens, ModelError for one that does not fit the model's context.
    """
    tokenizer = engine.model.tokenizer
    assert tokenizer is not None
    tokens = await TextWork().run(
        lambda: [reply_tokens(tokenizer, row.ending, choice, chat, verbatim) for choice in choices]
    )
    for choice, ids in zip(choices, tokens, strict=True):
        if not ids:
            raise InputError(f"the choice {choice!r} has no tokens for {engine.model.name!r}; give it a text")
        if len(row.ids) + len(ids) > engine.model.info.max_positions:
            raise ModelError(
                f"prompt and choice have {len(row.ids) + len(ids)} tokens, but {engine.model.name!r} reads at most "
                f"{engine.model.info.max_positions}; shorten the inputs"
            )
    scores = await score_tokens(engine, row, tokens)
    return [
        ChoiceScore(score.logprob, len(ids), len(choice), score.greedy)
        for score, ids, choice in zip(scores, tokens, choices, strict=True)
    ]


async def score_tokens(engine: Engine, row: AgentRow, tokens: Sequence[Sequence[int]]) -> list[TokenScore]:
    """Score these non-empty lists of tokens after the same row. Each must fit the model's context with it.

    Raises ModelError for a model whose cache can't be continued.
    """
    if engine.model.why_no_cache is not None:
        raise ModelError(f"{engine.model.name!r} can't score replies: {engine.model.why_no_cache}")
    logits = await (_fused_logits if row.sharers else _logits)(engine, row, tokens)
    return [_score(choice_logits, ids) for choice_logits, ids in zip(logits, tokens, strict=True)]


def reply_tokens(tokenizer: Tokenizer, ending: str, text: str, chat: bool, verbatim: bool = False) -> list[int]:
    """Tokenize a reply that follows a prompt ending in `ending`.

    A plain prompt's last piece is tokenized together with the text, and the tokens after the piece's own belong to the
    text, as in common evaluation harnesses. A space separates them if there is no white space, unless `verbatim`. A
    chat template ends in special tokens, which never merge with text.
    """
    if chat or not ending:
        return tokenizer.encode_words(text).ids
    spaced = text if verbatim or ending[-1].isspace() or text[:1].isspace() else f" {text}"
    alone = tokenizer.encode(ending, special=False).ids
    joined = ending + spaced
    return tokenizer.encode(joined, special=False, words=[(len(ending), len(joined))]).ids[len(alone) :]


async def _logits(engine: Engine, row: AgentRow, tokens: Sequence[Sequence[int]]) -> list[Tensor]:
    """By choice, the logits that predict each of its tokens, (tokens, vocab)."""
    shared, last = row.pending[:-1], row.pending[-1:]
    seen = row.ids[: len(row.ids) - len(row.pending)]
    segments, positions = row.segments, row.positions
    if shared:
        before = None if positions is None else positions[:-1]
        done = await engine.prefill(shared, segments, positions=before, seen=seen)
        segments, seen = done.segments, [*seen, *shared]
    after = None
    if positions is not None:
        after = [positions[-1] + torch.arange(len(ids)) for ids in tokens]
    read = [[*last, *ids[:-1]] for ids in tokens]
    rows = await engine.prefill_many(read, segments, positions=after, logits="all", seen=seen)
    return [prefilled.logits for prefilled in rows if prefilled.logits is not None]


async def _fused_logits(engine: Engine, row: AgentRow, tokens: Sequence[Sequence[int]]) -> list[Tensor]:
    """The same if sharers correct the reply, token by token as in decoding."""
    assert row.sharers is not None
    shared = FusedRow(engine, row.sharers, row.segments)
    for ids in tokens:
        shared.check([*row.pending, *ids[:-1]])
    first = (await shared.read(row.pending, row.positions))[-1:]
    out: list[list[Tensor]] = [[first] for _ in tokens]

    async def read_on(index: int) -> None:
        fork = shared.fork()
        for token in tokens[index][:-1]:
            out[index].append(await fork.read([token]))

    await run_all([partial(read_on, index) for index in range(len(tokens))])
    return [torch.cat(choice_logits) for choice_logits in out]


def _score(logits: Tensor, ids: Sequence[int]) -> TokenScore:
    chosen = torch.tensor(ids, device=logits.device)[:, None]
    logprob = logits.float().log_softmax(-1).gather(1, chosen).double().sum()
    return TokenScore(float(logprob), bool((logits.argmax(-1, keepdim=True) == chosen).all()))
