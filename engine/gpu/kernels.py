"""Attention of one new token a row, over caches in parts, in Triton.

Every address, length and position is read from tables in the GPU's memory, so the launches of a step are the same
whatever its rows have read, and nothing that rows share is copied. As in flash-decoding, several programs take a part
of a row's entries each, and what they found is merged.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["append", "attend"]

# What the tables hold, 64-bit numbers. Of a segment:
KEYS = tl.constexpr(0)  # address of the first entry
VALUES = tl.constexpr(1)
KEY_HEAD = tl.constexpr(2)  # from one head to the next, in numbers
KEY_ENTRY = tl.constexpr(3)  # from one entry to the next
VALUE_HEAD = tl.constexpr(4)
VALUE_ENTRY = tl.constexpr(5)
LENGTH = tl.constexpr(6)  # entries; of a row's last segment, its tail, as many as it has room for
PLACES = tl.constexpr(7)  # address of the entries' RoPE positions, where the model has windows
SEGMENT = tl.constexpr(8)  # numbers
# Of a row, each of these `STRIDE` numbers behind the one before:
FIRST = tl.constexpr(0)  # of its segments
COUNT = tl.constexpr(1)
USED = tl.constexpr(2)  # entries of its tail before the new one
POSITION = tl.constexpr(3)  # of the new token
TOKEN = tl.constexpr(4)
ENTRIES = tl.constexpr(5)  # of all its segments, with the new one; 0: an unused row

_SPLITS = 16  # programs that share a row's entries
_LEAST = 64  # entries for one of them
_TILE = 16384  # bytes of keys that a program looks at together
_TYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


def append(segments: Tensor, rows: Tensor, keys: Tensor, values: Tensor, windowed: bool) -> None:
    """Write each row's new entry into its tail, where that has room. `segments`: a layer's, (segments, 8) of int64;
    `rows`: (6, most rows) of int64; keys and values: (1, kv_heads, rows, head_dim).
    """
    _, heads, count, dim = keys.shape
    _append[count, heads](
        segments,
        rows,
        rows.stride(0),
        keys,
        keys.stride(1),
        keys.stride(2),
        values,
        values.stride(1),
        values.stride(2),
        dim,
        triton.next_power_of_2(dim),
        windowed,
        _TYPES[keys.dtype],
    )


def attend(
    segments: Tensor,
    rows: Tensor,
    query: Tensor,
    kv_heads: int,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Each row's query over its segments, the new entry too: (1, heads, rows, head_dim) -> (1, rows, heads, head_dim).

    `sinks`: (heads,), scores of what is attended to besides all entries and has no value.
    """
    _, heads, count, dim = query.shape
    group = heads // kv_heads
    size = max(16, triton.next_power_of_2(dim))  # products of less than 16 by 16 there are none
    found = query.new_empty(count, heads, _SPLITS, size, dtype=torch.float32)
    most = query.new_empty(2, count, heads, _SPLITS, dtype=torch.float32)  # the highest score; what all weigh
    _attend[count, kv_heads, _SPLITS](
        segments,
        rows,
        rows.stride(0),
        query,
        query.stride(1),
        query.stride(2),
        found,
        most,
        scale,
        softcap or 0.0,
        window or 0,
        group,
        dim,
        max(16, triton.next_power_of_2(group)),
        size,
        min(64, max(16, _TILE // (size * query.element_size()))),
        _SPLITS,
        _LEAST,
        16 // query.element_size(),
        _TYPES[query.dtype],
    )
    out = query.new_empty(1, count, heads, dim)
    _merge[count, heads](found, most, out, query if sinks is None else sinks, sinks is not None, dim, size, _SPLITS)
    return out


@triton.jit
def _append(
    segments,
    rows,
    STRIDE: tl.constexpr,
    keys,
    key_head,
    key_row,
    values,
    value_head,
    value_row,
    DIM: tl.constexpr,
    SIZE: tl.constexpr,
    WINDOWED: tl.constexpr,
    TYPE: tl.constexpr,
):
    row, head = tl.program_id(0), tl.program_id(1)
    used = tl.load(rows + USED * STRIDE + row)
    last = tl.load(rows + FIRST * STRIDE + row) + tl.load(rows + COUNT * STRIDE + row) - 1
    tail = segments + last * SEGMENT
    width = tl.where(used < tl.load(tail + LENGTH), DIM, 0)  # nothing is written where there is no room
    at = tl.arange(0, SIZE)
    key = tl.load(keys + head * key_head + row * key_row + at, mask=at < DIM)
    value = tl.load(values + head * value_head + row * value_row + at, mask=at < DIM)
    to_key = tl.load(tail + KEYS).to(tl.pointer_type(TYPE))
    to_value = tl.load(tail + VALUES).to(tl.pointer_type(TYPE))
    to_key += head * tl.load(tail + KEY_HEAD) + used * tl.load(tail + KEY_ENTRY)
    to_value += head * tl.load(tail + VALUE_HEAD) + used * tl.load(tail + VALUE_ENTRY)
    tl.store(to_key + at, key, mask=at < width)
    tl.store(to_value + at, value, mask=at < width)
    if WINDOWED:
        places = tl.load(tail + PLACES).to(tl.pointer_type(tl.int64))
        tl.store(places + used, tl.load(rows + POSITION * STRIDE + row), mask=(head == 0) & (width > 0))


@triton.jit
def _attend_segment(
    about,  # the segment's entry in the table
    kv_head,
    begin,  # of the entries that this program reads
    end,
    position,
    q,  # (heads, size)
    top,  # (heads,), highest score so far
    total,  # (heads,), sum of weights so far
    out,  # (heads, size), weighted sum of values so far
    scale,
    softcap,
    WINDOW: tl.constexpr,
    DIM: tl.constexpr,
    SIZE: tl.constexpr,
    TILE: tl.constexpr,
    UNIT: tl.constexpr,
    TYPE: tl.constexpr,
):
    """Continue the online softmax over a segment's entries; return the new `top`, `total` and `out`."""
    at = tl.arange(0, SIZE)
    keys = tl.multiple_of(tl.load(about + KEYS).to(tl.pointer_type(TYPE)), 16)
    keys = tl.multiple_of(keys + kv_head * tl.load(about + KEY_HEAD), 16)
    values = tl.multiple_of(tl.load(about + VALUES).to(tl.pointer_type(TYPE)), 16)
    values = tl.multiple_of(values + kv_head * tl.load(about + VALUE_HEAD), 16)
    key_entry = tl.multiple_of(tl.load(about + KEY_ENTRY), UNIT)
    value_entry = tl.multiple_of(tl.load(about + VALUE_ENTRY), UNIT)
    for start in range(begin, end, TILE):
        entry = start + tl.arange(0, TILE)
        seen = entry < end
        if WINDOW > 0:
            places = tl.load(about + PLACES).to(tl.pointer_type(tl.int64))
            seen &= position - tl.load(places + entry, mask=seen, other=0) < WINDOW
        mask = seen[:, None] & (at < DIM)[None, :]  # entries that no query sees are not loaded
        k = tl.load(keys + entry[:, None] * key_entry + at[None, :], mask=mask, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale  # (heads, entries)
        if softcap > 0:
            scores = softcap * (2 * tl.sigmoid(2 * scores / softcap) - 1)  # tanh
        scores = tl.where(seen[None, :], scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp(scores - base[:, None])
        kept = tl.exp(top - base)
        v = tl.load(values + entry[:, None] * value_entry + at[None, :], mask=mask, other=0.0)
        total = total * kept + tl.sum(weights, 1)
        out = out * kept[:, None] + tl.dot(weights.to(TYPE), v, input_precision="ieee")
        top = higher
    return top, total, out


@triton.jit
def _attend(
    segments,
    rows,
    STRIDE: tl.constexpr,
    query,
    query_head,
    query_row,
    found,  # (rows, heads, splits, size)
    most,  # (2, rows, heads, splits)
    scale,
    softcap,
    WINDOW: tl.constexpr,
    GROUP: tl.constexpr,  # query heads of one KV head
    DIM: tl.constexpr,
    HEADS: tl.constexpr,  # as many rows as the group has in a product
    SIZE: tl.constexpr,
    TILE: tl.constexpr,  # entries
    SPLITS: tl.constexpr,
    LEAST: tl.constexpr,
    UNIT: tl.constexpr,  # numbers in 16 bytes
    TYPE: tl.constexpr,
):
    row, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    entries = tl.load(rows + ENTRIES * STRIDE + row)
    share = tl.maximum((entries + SPLITS - 1) // SPLITS, LEAST)
    low = split * share
    high = tl.minimum(low + share, entries)
    heads = tl.num_programs(1) * GROUP
    totals = most + tl.num_programs(0) * heads * SPLITS
    group, at = tl.arange(0, HEADS), tl.arange(0, SIZE)
    head = kv_head * GROUP + group
    slot = (row * heads + head) * SPLITS + split
    if low >= entries:
        tl.store(most + slot, float("-inf"), mask=group < GROUP)
        tl.store(totals + slot, 0.0, mask=group < GROUP)
        return

    position = tl.load(rows + POSITION * STRIDE + row)
    first = tl.load(rows + FIRST * STRIDE + row)
    last = first + tl.load(rows + COUNT * STRIDE + row) - 1
    real = (group < GROUP)[:, None] & (at < DIM)[None, :]
    q = tl.load(query + head[:, None] * query_head + row * query_row + at[None, :], mask=real, other=0.0)
    top = tl.full([HEADS], float("-inf"), tl.float32)
    total = tl.full([HEADS], 0.0, tl.float32)
    out = tl.full([HEADS, SIZE], 0.0, tl.float32)
    before = entries * 0  # those of the segments before
    for segment in range(first, last + 1):
        about = segments + segment * SEGMENT
        length = tl.where(segment == last, entries - before, tl.load(about + LENGTH))
        begin = tl.maximum(low - before, 0)
        end = tl.minimum(high - before, length)
        top, total, out = _attend_segment(
            about, kv_head, begin, end, position, q, top, total, out, scale, softcap,
            WINDOW, DIM, SIZE, TILE, UNIT, TYPE,
        )  # fmt: skip
        before += length

    tl.store(most + slot, top, mask=group < GROUP)
    tl.store(totals + slot, total, mask=group < GROUP)
    tl.store(found + slot[:, None] * SIZE + at[None, :], out, mask=(group < GROUP)[:, None])


@triton.jit
def _merge(
    found,
    most,
    out,  # (rows, heads, dim)
    sinks,
    HAS_SINKS: tl.constexpr,
    DIM: tl.constexpr,
    SIZE: tl.constexpr,
    SPLITS: tl.constexpr,
):
    row, head = tl.program_id(0), tl.program_id(1)
    heads = tl.num_programs(1)
    at, split = tl.arange(0, SIZE), tl.arange(0, SPLITS)
    slots = (row * heads + head) * SPLITS + split
    tops = tl.load(most + slots)
    totals = tl.load(most + tl.num_programs(0) * heads * SPLITS + slots)
    top = tl.max(tops, 0)
    if HAS_SINKS:
        top = tl.maximum(top, tl.load(sinks + head).to(tl.float32))
    base = tl.where(top == float("-inf"), 0.0, top)
    weights = tl.exp(tops - base)
    total = tl.sum(totals * weights, 0)
    if HAS_SINKS:
        total += tl.exp(tl.load(sinks + head).to(tl.float32) - base)
    written = (tops > float("-inf"))[:, None]  # the others have written nothing
    parts = tl.load(found + slots[:, None] * SIZE + at[None, :], mask=written, other=0.0)
    merged = tl.sum(parts * weights[:, None], 0) / tl.where(total > 0, total, 1.0)
    tl.store(out + (row * heads + head) * DIM + at, merged.to(out.dtype.element_ty), mask=at < DIM)
