"""One forward pass over the new tokens of many rows: the only caller of a model whose cache can travel."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor

from cachegraph.errors import ModelError

from ..kernels import DecodeKernels
from ..kv.cache import LayerKV, RowCache
from ..kv.rope_by_length import RowLength, row_lengths
from ..transfer import to_device
from .attention import OnLayer, PackedRows, StopForward, packed_rows
from .devices import home_of, is_spread
from .model_config import ModelInfo
from .packed_states import PackedStates

__all__ = ["Row", "cache_argument", "forward"]

_HALF = (torch.bfloat16, torch.float16)
_cache_arguments: dict[type, str] = {}


@dataclass(eq=False)
class Row:
    """A row's share of one forward pass. Its cache is appended to."""

    ids: Sequence[int]
    cache: RowCache
    logits: Literal["none", "last", "all"] | Sequence[int] = "last"  # or: behind these of the new tokens
    positions: Tensor | None = None  # (new,) int64; default: on from the cache's end
    override: Sequence[LayerKV] | None = None  # by layer: K and V of the new tokens to use instead of their own
    sees: Tensor | None = None  # (new, new) of bool, lower triangular: which new tokens each sees, for branches
    short: bool = False  # of a short prompt: the kernels that decode read all of it, however it is cut
    on_layer: OnLayer | None = None  # called with each layer's entries, the past ones too, as soon as they are computed
    length: int | None = None  # of the whole row, if more tokens will follow
    layers: int | None = None  # number of layers after which to stop, without logits; None: all


def forward(
    model: Any, info: ModelInfo, rows: Sequence[Row], decoder: DecodeKernels | None = None
) -> list[Tensor | None]:
    """Run all rows' new tokens at once; `decoder` computes the rows that it can, if there is one.

    Returns, by row, the logits of its new tokens that were asked for, (asked, vocab), or None. If no row wants
    logits, the output head does not run. If the pass fails, all caches stay as they were.
    """
    groups: dict[tuple[Literal["few", "many"] | None, int | None], list[Row]] = {}
    for row in rows:
        groups.setdefault((_kernel_of(row, decoder), row.layers), []).append(row)
    by_row: dict[int, Tensor | None] = {}
    before = [row.cache.used for row in rows]
    try:
        for (kind, layers), some in groups.items():
            if decoder is not None and kind is not None:
                by_row |= _by_kernels(decoder, some, kind == "many", layers)
            else:
                by_row |= {id(row): out for row, out in zip(some, _forward(model, info, some, layers), strict=True)}
    except BaseException:
        for row, used in zip(rows, before, strict=True):
            row.cache.take_back(used)
        raise
    return [by_row[id(row)] for row in rows]


def _kernel_of(row: Row, decoder: DecodeKernels | None) -> Literal["few", "many"] | None:
    """Which kernels compute a row: `few` a token or a short prompt, `many` a longer one; None: torch does."""
    odd = row.override is not None or row.sees is not None or row.on_layer is not None
    if decoder is None or odd or (row.layers is not None and not decoder.stops_early):
        return None
    if row.short or len(row.ids) == 1:
        return "few"
    return "many" if decoder.reads_prompts else None


def _by_kernels(
    decoder: DecodeKernels, rows: Sequence[Row], many: bool, layers: int | None
) -> dict[int, Tensor | None]:
    asked = [_asked(row) for row in rows]
    positions = [row.positions for row in rows]
    logits = decoder.read([row.ids for row in rows], [row.cache for row in rows], asked, positions, many, layers)
    parts = torch.split(logits, [len(some) for some in asked])
    return {id(row): part if len(part) else None for row, part in zip(rows, parts, strict=True)}


def _forward(model: Any, info: ModelInfo, rows: Sequence[Row], layers: int | None) -> list[Tensor | None]:
    if not info.alone:
        return _forward_packed(model, info, rows, layers)
    if any(row.sees is not None for row in rows):
        raise ModelError(
            f"{info.model_type!r} models attend by themselves, which can't read branches of one row side by side; "
            "give each branch a row"
        )
    return [out for row in rows for out in _forward_packed(model, info, [row], layers)]


def _forward_packed(model: Any, info: ModelInfo, rows: Sequence[Row], layers: int | None) -> list[Tensor | None]:
    device = home_of(model)
    asked = len(rows)
    if model.dtype in _HALF and not info.alone:
        rows = _never_one_token(rows)
    positions = [_positions(row) for row in rows]
    ids = to_device([[token for row in rows for token in row.ids]], torch.int64, device)  # (1, tokens)
    packed = PackedRows(
        caches=[row.cache for row in rows],
        positions=positions,
        windows=info.windows,
        overrides=[row.override for row in rows] if any(row.override for row in rows) else (),
        sees=[row.sees for row in rows] if any(row.sees is not None for row in rows) else (),
        on_layer=[row.on_layer for row in rows] if any(row.on_layer is not None for row in rows) else (),
        layers=layers,
        expands=info.expands,
        reversed=info.reversed,
        alone=info.alone,
        states=_states(model, info, rows),
    )
    wanted = _wanted(rows)
    with packed_rows(packed) as cache, row_lengths(_lengths(info, rows, positions)):
        inputs = {"input_ids": ids, "position_ids": torch.cat(positions)[None].to(device), cache_argument(model): cache}
        if not wanted:
            with suppress(StopForward):
                model.get_decoder()(**inputs, use_cache=True)
            return [None] * asked
        keep = to_device(wanted, torch.int64, torch.device("cpu") if is_spread(model) else device)
        logits = model(**inputs, use_cache=True, logits_to_keep=keep).logits[0]
    if len(logits) > len(wanted):  # some models ignore `logits_to_keep`
        logits = logits[keep.to(logits.device)]  # (wanted, vocab)
    return _by_row(rows, logits)[:asked]


def _states(model: Any, info: ModelInfo, rows: Sequence[Row]) -> PackedStates | None:
    """The rows' recurrent states. Raises ModelError where one is not known, or branches would have to share one."""
    if not info.states:
        return None
    for row in rows:
        if row.sees is not None:
            raise ModelError(
                f"{info.model_type!r} models have recurrent layers, which can't read branches of one row side by side; "
                "give each branch a row"
            )
        if len(row.cache) and row.cache.state is None:
            raise ModelError(
                f"{info.model_type!r} models have recurrent layers, and their state behind these {len(row.cache)} "
                "positions was not kept; read them from the beginning"
            )
    return PackedStates([row.cache for row in rows], [len(row.ids) for row in rows], info.states, model.dtype)


def cache_argument(model: Any) -> str:
    """What this model's forward pass calls its cache: transformers 5.24 renamed it, and recurrent models differ.

    Raises TypeError for a model that takes none.
    """
    kind = type(model)
    if kind not in _cache_arguments:
        parameters = signature(kind.forward).parameters
        names = ("cache", "past_key_values", "cache_params")
        found = next((name for name in names if name in parameters), None)
        if found is None:
            raise TypeError(f"{kind.__name__} takes no cache")
        _cache_arguments[kind] = found
    return _cache_arguments[kind]


def _never_one_token(rows: Sequence[Row]) -> Sequence[Row]:
    """Give a lone token a companion whose results are dropped.

    Matrix kernels round one row and several differently, so without it a row's reply would depend on whether other
    rows decode at the same time. With it, bfloat16 on a CPU without AMX gives the same bits alone and in any batch.
    float32 does so to a last bit or two only, and is left to compute what transformers does.
    """
    if len(rows) != 1 or len(rows[0].ids) != 1:
        return rows
    companion = Row(rows[0].ids, RowCache(), "none")
    companion.cache.state = rows[0].cache.state
    return [*rows, companion]


def _positions(row: Row) -> Tensor:
    if row.positions is not None:
        return row.positions
    start = row.cache.next_position
    return torch.arange(start, start + len(row.ids))


def _lengths(info: ModelInfo, rows: Sequence[Row], positions: Sequence[Tensor]) -> list[RowLength]:
    """How long the rows are, of a model whose RoPE asks for it; their caches note the frequencies."""
    if info.by_length is None:
        return []
    lengths = [
        RowLength(len(at), max(row.length or 0, int(at[-1]) + 1)) for row, at in zip(rows, positions, strict=True)
    ]
    for row, (_, length) in zip(rows, lengths, strict=True):
        row.cache.got_factors(info.by_length.factors(length))
    return lengths


def _asked(row: Row) -> Sequence[int]:
    """The row's new tokens behind which logits are wanted."""
    new = len(row.ids)
    if isinstance(row.logits, str):
        return {"none": range(0), "last": range(new - 1, new), "all": range(new)}[row.logits]
    return row.logits


def _wanted(rows: Sequence[Row]) -> list[int]:
    wanted, start = [], 0
    for row in rows:
        wanted += [start + index for index in _asked(row)]
        start += len(row.ids)
    return wanted


def _by_row(rows: Sequence[Row], logits: Tensor) -> list[Tensor | None]:
    out: list[Tensor | None] = []
    start = 0
    for row in rows:
        count = len(_asked(row))
        out.append(logits[start : start + count] if count else None)
        start += count
    return out
