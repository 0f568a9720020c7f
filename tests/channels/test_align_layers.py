"""Which layer corrects which."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachegraph.channels.fusers.layer_map import LayerPair, check_layers, k_nearest, last_aligned
from cachegraph.errors import FuserError

depths = st.integers(1, 64)


def test_last_aligned_repeats_the_first_sharer_layer_where_the_sharer_is_shallower() -> None:
    assert last_aligned(4, 3) == ((0, 0), (1, 0), (2, 1), (3, 2))


def test_last_aligned_leaves_out_the_first_sharer_layers_where_the_sharer_is_deeper() -> None:
    assert last_aligned(4, 6) == ((0, 2), (1, 3), (2, 4), (3, 5))


def test_k_nearest_goes_by_relative_depth() -> None:
    assert k_nearest(3, 5) == ((0, 0), (1, 2), (2, 4))
    assert k_nearest(2, 4, k=2) == ((0, 0), (0, 1), (1, 3), (1, 2))
    assert k_nearest(1, 3) == ((0, 0),)


@given(depths, depths)
def test_every_receiver_layer_gets_one_layer_and_the_last_gets_the_last(receiver: int, sharer: int) -> None:
    for pairs in (last_aligned(receiver, sharer), *([k_nearest(receiver, sharer)] if receiver > 1 else [])):
        assert check_layers(pairs, receiver, sharer) == pairs
        assert [pair.receiver for pair in pairs] == list(range(receiver))
        assert pairs[-1].sharer == sharer - 1


def test_a_layer_that_is_corrected_twice_is_refused() -> None:
    with pytest.raises(FuserError, match="receiver layer 1 is corrected by the sharer layers 0 and 2"):
        check_layers([LayerPair(1, 0), LayerPair(1, 2)], 2, 3)


def test_a_layer_that_does_not_exist_is_refused() -> None:
    with pytest.raises(FuserError, match="sharer layer 3 to receiver layer 0"):
        check_layers([LayerPair(0, 3)], 2, 3)
