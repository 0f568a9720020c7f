"""The probe rows that a model reads in several ways, and the logits that it gives for them by itself.

One row starts at position 0 and is read in pieces: its prompt in two, then token by token. Another, shorter one is
beside it. Further ones are far out: behind every length that the model was trained for, and at the end of what it can
read. Windows are narrowed for the time, so that these few tokens exceed them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from ...kv.cache import RowCache
from ..devices import home_of
from ..forward import Row
from ..model_config import ModelInfo

__all__ = [
    "NEAR_PIECE",
    "ProbeRow",
    "Results",
    "generate_logits",
    "narrow_windows",
    "own_logits",
    "probe_rows",
    "read_rows",
    "relative_difference",
]

TOKENS = 20  # of a row
NEAR_PIECE = 9  # of them, how many the first piece of the first row has
_OTHER = (3, 4, 1)  # the shorter row's pieces
_NEAR = 61  # position of the nearest of the far rows
_FURTHEST = 1 << 20
_NARROW = 5  # size of narrowed windows

Step = Callable[[list[Row]], list[Tensor | None]]


@dataclass(frozen=True)
class ProbeRow:
    """Tokens at positions from `start` on, read in pieces."""

    ids: list[int]
    start: int
    pieces: tuple[int, ...]
    border: int | None = None  # a length behind which it starts; the model may compute differently from there on

    @property
    def ends(self) -> list[int]:
        """The last token of each piece."""
        return [sum(self.pieces[: count + 1]) - 1 for count in range(len(self.pieces))]


@dataclass(frozen=True, eq=False)
class Results:
    """By row: the logits behind each piece, (vocab,) each, and the row's cache."""

    logits: list[list[Tensor]]
    caches: list[RowCache]


def probe_rows(config: Any, info: ModelInfo) -> list[ProbeRow]:
    """The near row, the shorter row beside it, then the far rows."""
    vocab = info.vocab_size
    ids = [(37 * index + 1) % vocab for index in range(TOKENS)]
    other = [(53 * index + 2) % vocab for index in range(sum(_OTHER))]
    near = ProbeRow(ids, 0, (NEAR_PIECE, TOKENS - NEAR_PIECE - 2, 1, 1))
    far = [ProbeRow(ids, start, (TOKENS - 1, 1), border) for start, border in _starts(config, info)]
    return [near, ProbeRow(other, 0, _OTHER), *far]


def _starts(config: Any, info: ModelInfo) -> list[tuple[int, int | None]]:
    """Start positions of the far rows, each with the border behind which it is."""
    text = config.get_text_config(decoder=True)
    rope = getattr(text, "rope_parameters", None) or {}
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    lengths = [kind.get("original_max_position_embeddings") for kind in kinds]
    lengths.append(getattr(text, "original_max_position_embeddings", None))
    last = min(info.max_positions, _FURTHEST) - TOKENS
    starts: dict[int, int | None] = {_NEAR: None, last: None}
    starts |= {int(length) + 3: int(length) for length in lengths if length}
    return sorted((start, border) for start, border in starts.items() if 0 < start <= last)


@contextmanager
def narrow_windows(network: Any, info: ModelInfo) -> Iterator[ModelInfo]:
    """Within the block, the model's windows are a few positions wide; yields its geometry with those windows.

    Models with windows of several sizes keep theirs.
    """
    config, wide = network.get_decoder().config, set(info.windows) - {None}
    known = len(wide) == 1 and getattr(config, "sliding_window", None) in wide
    window = max((width for width in wide if width is not None), default=0)
    if not known or window <= TOKENS // 2:
        yield info
        return
    config.sliding_window = _NARROW
    try:
        yield replace(info, windows=tuple(None if width is None else _NARROW for width in info.windows))
    finally:
        config.sliding_window = window


def own_logits(network: Any, rows: Sequence[ProbeRow], *, one_by_one: bool) -> list[list[Tensor]]:
    """Logits of the whole rows by the model's own forward pass, without a cache: by row and piece, (vocab,).

    `one_by_one`: each row in its own pass, for models that compute a row differently beside a longer one.
    """
    groups = [[row] for row in rows] if one_by_one else [list(rows)]
    return [logits for group in groups for logits in _own_logits(network, group)]


def _own_logits(network: Any, rows: Sequence[ProbeRow]) -> list[list[Tensor]]:
    length, home = max(len(row.ids) for row in rows), home_of(network)
    known = signature(type(network).forward).parameters
    ids = torch.tensor([row.ids + [1] * (length - len(row.ids)) for row in rows], device=home)  # (rows, length)
    positions = torch.stack([torch.arange(row.start, row.start + length) for row in rows]).to(home)
    inputs: dict[str, Any] = {"input_ids": ids, "use_cache": False}
    if "position_ids" in known:
        inputs["position_ids"] = positions
    elif any(row.start for row in rows):
        raise ValueError("the model takes no positions")
    ends = sorted({end for row in rows for end in row.ends})
    if "logits_to_keep" in known:
        inputs["logits_to_keep"] = torch.tensor(ends, device=home)
    logits = network(**inputs).logits  # (rows, ends or length, vocab)
    places = {end: index for index, end in enumerate(ends)} if logits.shape[1] == len(ends) else range(length)
    return [[logits[index, places[end]].float() for end in row.ends] for index, row in enumerate(rows)]


def generate_logits(network: Any, row: ProbeRow) -> tuple[ProbeRow, list[Tensor]]:
    """Continue the row's first piece by transformers' `generate`: the whole row, and each step's logits, (vocab,)."""
    prompt = torch.tensor([row.ids[: row.pieces[0]]], device=home_of(network))
    steps = len(row.pieces)
    out = network.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=steps,
        min_new_tokens=steps,
        do_sample=False,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    ids = out.sequences[0].tolist()[:-1]
    return ProbeRow(ids, 0, (row.pieces[0], *(1,) * (steps - 1))), [logits[0].float() for logits in out.logits]


def read_rows(rows: Sequence[ProbeRow], step: Step, cache: Callable[[], RowCache] = RowCache) -> Results:
    """Read the rows piece by piece, each into a cache of `cache`; rows that have a piece left share a pass."""
    logits: list[list[Tensor]] = [[] for _ in rows]
    caches = [cache() for _ in rows]
    for piece in range(max(len(row.pieces) for row in rows)):
        at_work = [index for index, row in enumerate(rows) if piece < len(row.pieces)]
        asked = [_piece(rows[index], piece, caches[index]) for index in at_work]
        for index, out in zip(at_work, step(asked), strict=True):
            assert out is not None
            logits[index].append(out[-1].float())
    return Results(logits, caches)


def _piece(row: ProbeRow, piece: int, cache: RowCache) -> Row:
    end = row.ends[piece] + 1
    begin = end - row.pieces[piece]
    at = torch.arange(row.start + begin, row.start + end)
    return Row(row.ids[begin:end], cache, positions=at, length=row.start + len(row.ids))


def relative_difference(got: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference of two tensors, (vocab,) each, as a share of the expected norm; they are centred first."""
    return max((_relative_difference(a, b) for a, b in zip(got, expected, strict=True)), default=0.0)


def _relative_difference(got: Tensor, expected: Tensor) -> float:
    if got.shape != expected.shape:
        return 1e9
    a, b = ((tensor.float() - tensor.float().mean(-1, keepdim=True)).cpu() for tensor in (got, expected))
    error = ((a - b).norm() / b.norm().clamp_min(1e-30)).item()
    return error if error < 1e9 else 1e9  # not a number, either
