"""Log-probabilities of replies after shared caches, under autograd: all prompts and replies of a text in one row.

The new tokens of a row form a tree: a trunk, which all prompts begin with, follows the cache; each prompt branches off
it, and each reply off its prompt. A mask says which new tokens a token attends to, so each layer needs one attention
call, which reads the cache once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cachegraph.engine.kv.cache import KV, RowCache
from cachegraph.engine.model.forward import Row, forward
from cachegraph.engine.model.load import LoadedModel

from .examples import Replies

__all__ = ["Branch", "Tree", "reply_logprobs"]


@dataclass(frozen=True, eq=False)
class Branch:
    """The last part of a prompt, and the replies that may follow it."""

    ids: Sequence[int]  # at least one
    replies: Replies
    positions: Tensor | None = None  # (ids,) int64; default: consecutive after the cache


@dataclass(frozen=True, eq=False)
class Tree:
    """Branches after one cache, which may carry gradients. `trunk`: tokens between the cache and every branch."""

    segments: tuple[KV, ...]
    branches: Sequence[Branch]
    trunk: Sequence[int] = ()


@dataclass(frozen=True)
class _Reply:
    """The rows of the requested logits that predict a reply's tokens, one per token."""

    rows: list[int]
    ids: Sequence[int]


def reply_logprobs(model: LoadedModel, trees: Sequence[Tree]) -> list[list[Tensor]]:
    """The replies' log-probabilities by tree and branch: (replies,) float32 in nats, with gradients."""
    rows, wanted = [], []
    for tree in trees:
        row, replies = _row(tree)
        rows.append(row)
        wanted.append(replies)
    logits = forward(model.network, model.info, rows)
    out = []
    for row_logits, branches in zip(logits, wanted, strict=True):
        assert row_logits is not None
        logprobs = row_logits.float().log_softmax(-1)  # (asked, vocab)
        out.append([torch.stack([_sum(logprobs, reply) for reply in replies]) for replies in branches])
    return out


def _sum(logprobs: Tensor, reply: _Reply) -> Tensor:
    rows, ids = (torch.tensor(list(indices), device=logprobs.device) for indices in (reply.rows, reply.ids))
    return logprobs[rows, ids].sum()


def _row(tree: Tree) -> tuple[Row, list[list[_Reply]]]:
    cache = RowCache(tree.segments)
    first_branch = cache.next_position + len(tree.trunk)
    ids: list[int] = list(tree.trunk)
    positions: list[Tensor] = [torch.arange(cache.next_position, first_branch)]
    stretches: list[tuple[int, int, int, int]] = []  # a stretch of tokens, and the stretch of its prompt
    asked: list[int] = []
    wanted: list[list[_Reply]] = []
    for branch in tree.branches:
        at = branch.positions
        if at is None:
            at = torch.arange(first_branch, first_branch + len(branch.ids))
        start = len(ids)
        ids += branch.ids
        positions.append(at)
        end = len(ids)
        stretches.append((start, end, start, end))
        first = len(asked)
        asked.append(end - 1)
        replies = []
        for reply in branch.replies.ids:
            body = reply[:-1]  # the last token is predicted but predicts nothing
            stretches.append((len(ids), len(ids) + len(body), start, end))
            positions.append(at[-1] + 1 + torch.arange(len(body)))
            replies.append(_Reply([first, *range(len(asked), len(asked) + len(body))], reply))
            asked += range(len(ids), len(ids) + len(body))
            ids += body
        wanted.append(replies)
    row = Row(ids, cache, asked, positions=torch.cat(positions), sees=_sees(len(ids), len(tree.trunk), stretches))
    return row, wanted


def _sees(length: int, trunk: int, stretches: Sequence[tuple[int, int, int, int]]) -> Tensor:
    """(new, new) bool: a token attends to the tokens before it in the trunk, in its own stretch and in its prompt."""
    sees: Any = torch.zeros(length, length, dtype=torch.bool)
    sees[:, :trunk] = True
    for start, end, prompt, prompt_end in stretches:
        sees[start:end, prompt:prompt_end] = True
        sees[start:end, start:end] = True
    return sees.tril()  # type: ignore[no-any-return]
