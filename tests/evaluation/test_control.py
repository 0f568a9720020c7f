import torch
from hypothesis import given
from hypothesis import strategies as st

from cachegraph.agents.local.ablation import mismatched_prompt, zeros
from cachegraph.channels.cache.shared_prompt import SharedPrompt, SharerPrompt, pair_tokens
from cachegraph.engine.kv.cache import KV, LayerKV


def reading(length: int, pairs: list[tuple[int, int]], sharer: int) -> SharedPrompt:
    return pair_tokens(list(range(length)), [SharerPrompt(list(range(100, 100 + sharer)))], [pairs])


def pairs_of(found: SharedPrompt) -> list[tuple[int, int]]:
    return [
        (stretch.start + here, there)
        for stretch in found.stretches
        for pairs in stretch.pairs.values()
        for here, there in zip(pairs.receiver.tolist(), pairs.sharer.tolist(), strict=True)
    ]


def test_the_receiver_keeps_its_prompt_and_the_sharer_reads_the_other() -> None:
    mine = reading(10, [(at, at) for at in range(2, 9)], 9)
    other = reading(6, [(at, at + 1) for at in range(2, 5)], 7)
    found = mismatched_prompt(mine, other)
    assert (found.ids, found.sharers) == (mine.ids, other.sharers)
    assert pairs_of(found) == [(2, 3), (3, 4), (4, 5)]  # clipped to the shorter of the two


def test_stretch_meets_stretch_where_both_prompts_have_as_many() -> None:
    mine = reading(20, [(1, 1), (2, 2), (3, 3), (10, 8), (11, 9)], 10)
    other = reading(9, [(1, 0), (5, 4), (6, 5), (7, 6)], 7)
    assert pairs_of(mismatched_prompt(mine, other)) == [(1, 0), (10, 4), (11, 5)]


def test_where_the_stretches_do_not_correspond_positions_are_paired_in_their_order() -> None:
    mine = reading(20, [(1, 1), (2, 2), (10, 8), (11, 9)], 10)
    other = reading(9, [(3, 2), (4, 3), (5, 6)], 7)
    assert pairs_of(mismatched_prompt(mine, other)) == [(1, 2), (2, 3), (10, 6)]


pairings = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 20)), unique_by=lambda pair: pair[0]).map(sorted)


@given(pairings, pairings)
def test_every_pair_is_a_receiver_position_of_mine_and_a_sharer_position_of_the_other(
    mine: list[tuple[int, int]], other: list[tuple[int, int]]
) -> None:
    first, second = reading(32, mine, 21), reading(32, other, 21)
    found = pairs_of(mismatched_prompt(first, second))
    assert {here for here, _ in found} <= {here for here, _ in pairs_of(first)}
    assert {there for _, there in found} <= {there for _, there in pairs_of(second)}
    assert len(found) <= min(len(pairs_of(first)), len(pairs_of(second)))
    assert pairs_of(mismatched_prompt(first, first)) == pairs_of(first)


def test_zeros_keep_shape_type_and_positions() -> None:
    layer = LayerKV(torch.ones(1, 2, 3, 4, dtype=torch.bfloat16), torch.ones(1, 2, 3, 4, dtype=torch.bfloat16))
    kv = KV((layer, layer), torch.tensor([4, 5, 9]))
    empty = zeros(kv)
    assert empty.positions is kv.positions
    for each in empty.layers:
        assert (each.keys.shape, each.keys.dtype) == (layer.keys.shape, torch.bfloat16)
        assert not each.keys.any()
        assert not each.values.any()
    assert layer.keys.all()
