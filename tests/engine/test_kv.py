"""Caches as values: shared in front, written behind, never changed by anybody else."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cachegraph.engine.kv.cache import KV, LayerKV, RowCache, concat

LAYERS = 2


def kv(start: int, count: int) -> KV:
    """Every entry says which it is."""
    entries = torch.arange(start, start + count)
    layers = [(entries + 1000.0 * layer).view(1, 1, -1, 1).expand(1, 2, -1, 3) for layer in range(LAYERS)]
    return KV(tuple(LayerKV(layer, -layer) for layer in layers), entries)


def append(cache: RowCache, new: KV) -> list[LayerKV]:
    cache.reserve(new.positions)
    seen = [cache.append(layer, *pair) for layer, pair in enumerate(new.layers)]
    cache.commit()
    return seen


def same(a: KV, b: KV) -> bool:
    tensors = zip([x for layer in a.layers for x in layer], [x for layer in b.layers for x in layer], strict=True)
    return torch.equal(a.positions, b.positions) and all(torch.equal(x, y) for x, y in tensors)


@settings(max_examples=60, deadline=None)
@given(shared=st.lists(st.integers(0, 40), max_size=3), pieces=st.lists(st.integers(1, 90), min_size=1, max_size=8))
def test_a_row_sees_all_its_entries_in_order(shared: list[int], pieces: list[int]) -> None:
    at, segments = 0, []
    for count in shared:
        segments.append(kv(at, count))
        at += count
    cache = RowCache(segments)
    assert cache.next_position == at
    for count in pieces:
        seen = append(cache, kv(at, count))
        at += count
        for layer, pair in enumerate(seen):
            assert pair.keys[0, 0, :, 0].tolist() == [1000.0 * layer + entry for entry in range(at)]
            assert torch.equal(pair.values, -pair.keys)
    assert (len(cache), cache.next_position, cache.positions.tolist()) == (at, at, list(range(at)))
    assert same(concat(cache.freeze()), kv(0, at))


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.tuples(st.sampled_from(["appended", "written", "swapped"]), st.integers(1, 70)), max_size=12))
def test_code_that_writes_into_the_buffers_itself_leaves_what_appending_leaves(steps: list[tuple[str, int]]) -> None:
    cache, frozen, at = RowCache(), [], 0
    for how, count in steps:
        new = kv(at, count)
        if how == "appended":
            append(cache, new)
        else:
            if how == "swapped":
                cache.put_tail([LayerKV(*(each.clone() for each in layer)) for layer in cache.take_tail()])
            buffers, used = cache.room_for(count, LAYERS, 2, 3, torch.float32)
            assert used == at
            for buffer, layer in zip(buffers, new.layers, strict=True):
                for to, of in zip(buffer, layer, strict=True):
                    to[:, :, used : used + count] = of
            cache.reserve(range(at, at + count))
            cache.commit()
        at += count
        frozen.append(cache.tail())
    for tail in frozen:
        assert same(tail, kv(0, len(tail)))
    assert len(cache) == at


def test_who_goes_on_with_a_rows_values_keeps_no_keys_alive() -> None:
    buffers, _ = RowCache().room_for(40, LAYERS, 2, 3, torch.float32)
    keys, values = ({each.untyped_storage().data_ptr() for each in side} for side in zip(*buffers, strict=True))
    assert not keys & values


def test_a_large_tail_moves_layer_by_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cachegraph.engine.kv.cache._TOGETHER", 0)
    cache = RowCache()
    for at in range(0, 200, 50):
        buffers, used = cache.room_for(50, LAYERS, 2, 3, torch.float32)
        for buffer, layer in zip(buffers, kv(at, 50).layers, strict=True):
            for to, of in zip(buffer, layer, strict=True):
                to[:, :, used : used + 50] = of
        cache.reserve(range(at, at + 50))
        cache.commit()
    assert same(cache.tail(), kv(0, 200))
    assert len({each.untyped_storage().data_ptr() for layer in buffers for each in layer}) == 2 * LAYERS


def test_a_frozen_tail_is_not_changed_by_what_comes_later() -> None:
    cache = RowCache()
    append(cache, kv(0, 5))
    frozen = cache.tail()
    for at in range(5, 200):
        append(cache, kv(at, 1))
    assert same(frozen, kv(0, 5))


def test_two_rows_that_continue_from_one_write_apart() -> None:
    first = RowCache()
    append(first, kv(0, 5))
    one, other = RowCache(first.freeze()), RowCache(first.freeze())
    append(one, kv(5, 2))
    append(other, kv(50, 3))
    append(first, kv(500, 1))
    assert concat(one.freeze()).positions.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert concat(other.freeze()).positions.tolist() == [0, 1, 2, 3, 4, 50, 51, 52]
    assert same(one.tail(), kv(5, 2))
    assert same(other.tail(), kv(50, 3))


def test_what_is_reserved_and_not_committed_does_not_count() -> None:
    cache = RowCache()
    append(cache, kv(0, 3))
    cache.reserve(torch.arange(3, 9))
    cache.append(0, *kv(3, 6).layers[0])
    assert (len(cache), cache.next_position) == (3, 3)
    append(cache, kv(3, 2))
    assert same(cache.tail(), kv(0, 5))


def test_slices_share_memory_and_picked_entries_do_not() -> None:
    whole = kv(0, 10)
    piece, picked = whole.select(slice(2, 5)), whole.select(torch.tensor([1, 7]))
    memory = whole.layers[0].keys.untyped_storage().data_ptr()
    assert piece.layers[0].keys.untyped_storage().data_ptr() == memory
    assert picked.layers[0].keys.untyped_storage().data_ptr() != memory
    assert same(piece, kv(2, 3))
    assert picked.positions.tolist() == [1, 7]


def test_a_cache_that_is_where_it_should_be_is_not_copied() -> None:
    whole = kv(0, 4)
    assert whole.to([torch.device("cpu")] * len(whole.layers), torch.float32) is whole
    assert whole.to([torch.device("cpu")] * len(whole.layers), torch.bfloat16).layers[0].keys.dtype == torch.bfloat16


def test_gradients_reach_what_a_row_wrote() -> None:
    cache = RowCache([kv(0, 2)])
    keys = torch.ones(1, 2, 3, 3, requires_grad=True)
    cache.reserve(torch.arange(2, 5))
    seen = cache.append(0, keys, keys * 2)
    torch.autograd.backward(seen.keys.sum() + seen.values.sum())
    assert keys.grad is not None
    assert torch.equal(keys.grad, torch.full_like(keys, 3.0))


def test_a_cache_says_how_large_it_is_and_none_of_its_numbers() -> None:
    assert repr(kv(3, 5)) == "KV(2 layers, 5 positions)"
