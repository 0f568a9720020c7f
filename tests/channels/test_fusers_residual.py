"""Sums of residuals: what changes, what must not, and in which order."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cachegraph.channels.cache.apply_fuser import FuserInput, FusionMode, fuse_layers
from cachegraph.channels.fusers.files.card import Geometry
from cachegraph.channels.fusers.networks.base import Fuser
from cachegraph.channels.fusers.networks.create import new_fuser
from cachegraph.engine.kernels import KVPair
from cachegraph.errors import ChannelError

RECEIVER, SHARER = Geometry(3, 2, 4), Geometry(2, 1, 6)
MODES: tuple[FusionMode, ...] = ("parallel", "sequential")


def fuser(seed: int = 0, gate_logit: float = 1.0, **options: Any) -> Fuser:
    return new_fuser(
        "c2c", RECEIVER, SHARER, hidden_dim=8, intermediate_dim=8, seed=seed, gate_logit=gate_logit, **options
    )


def cache(geometry: Geometry, positions: int, seed: int, batch: int = 1) -> list[KVPair]:
    assert isinstance(geometry.kv_heads, int)
    assert isinstance(geometry.head_dim, int)
    torch.manual_seed(seed)
    shape = (batch, geometry.kv_heads, positions, geometry.head_dim)
    return [(torch.randn(shape), torch.randn(shape)) for _ in range(geometry.layers)]


def pairs(*both: tuple[int, int]) -> tuple[Tensor, Tensor]:
    return torch.tensor([a for a, _ in both]), torch.tensor([b for _, b in both])


def same(one: Any, other: Any) -> bool:
    return all(torch.equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize("mode", MODES)
def test_nothing_to_fuse_gives_back_the_very_same_tensors(mode: FusionMode) -> None:
    receiver = cache(RECEIVER, 5, 0)
    nothing = pairs()
    for sources in (
        [],
        [FuserInput(fuser(gate_logit=-1.0), cache(SHARER, 5, 1))],
        [FuserInput(fuser(), cache(SHARER, 9, 1), (nothing[0].long(), nothing[1].long()))],
    ):
        fused = fuse_layers(receiver, sources, mode)
        assert fused.changed == ()
        assert all(new is old for new, old in zip(fused.layers, receiver, strict=True))


def test_a_closed_gate_leaves_its_half_of_the_layer_and_other_layers_alone() -> None:
    half = fuser(layer_map=[(1, 0)])
    torch.nn.init.constant_(half.projectors[1].value_gate_logit, -1.0)  # type: ignore[arg-type]
    receiver = cache(RECEIVER, 5, 0)
    fused = fuse_layers(receiver, [FuserInput(half, cache(SHARER, 5, 1))])
    assert fused.changed == (1,)
    assert fused.layers[0] is receiver[0]
    assert fused.layers[1][1] is receiver[1][1]
    assert not torch.equal(fused.layers[1][0], receiver[1][0])


def test_a_closed_gate_costs_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise AssertionError("a closed projector was asked")

    monkeypatch.setattr("cachegraph.channels.fusers.networks.c2c.C2CProjector.residual", fail)
    fuse_layers(cache(RECEIVER, 5, 0), [FuserInput(fuser(gate_logit=0.0), cache(SHARER, 5, 1))])


@pytest.mark.parametrize("mode", MODES)
def test_inputs_are_never_written_to(mode: FusionMode) -> None:
    receiver, first, second = cache(RECEIVER, 5, 0), cache(SHARER, 5, 1), cache(SHARER, 7, 2)
    before = [[(k.clone(), v.clone()) for k, v in layers] for layers in (receiver, first, second)]
    fuse_layers(receiver, [FuserInput(fuser(1), first), FuserInput(fuser(2), second, pairs((4, 6), (1, 0)))], mode)
    assert all(same(a, b) for a, b in zip((receiver, first, second), before, strict=True))


def test_only_paired_positions_change_and_each_by_its_own_partner() -> None:
    receiver, sharer, f = cache(RECEIVER, 5, 0), cache(SHARER, 7, 1), fuser()
    fused = fuse_layers(receiver, [FuserInput(f, sharer, pairs((3, 6), (0, 2)))]).layers
    for layer, other, projector in f:
        for position, partner in ((3, 6), (0, 2)):
            k, v = projector.residual(
                *(x[:, :, [partner]] for x in sharer[other]), *(x[:, :, [position]] for x in receiver[layer])
            )
            assert k is not None
            assert v is not None
            torch.testing.assert_close(fused[layer][0][:, :, [position]], receiver[layer][0][:, :, [position]] + k)
            torch.testing.assert_close(fused[layer][1][:, :, [position]], receiver[layer][1][:, :, [position]] + v)
        assert torch.equal(fused[layer][0][:, :, [1, 2, 4]], receiver[layer][0][:, :, [1, 2, 4]])


def test_in_parallel_all_see_the_clean_cache_and_in_sequence_each_sees_the_last() -> None:
    receiver = cache(RECEIVER, 5, 0)
    one, two = FuserInput(fuser(1), cache(SHARER, 5, 1)), FuserInput(fuser(2), cache(SHARER, 5, 2))
    parallel = fuse_layers(receiver, [one, two]).layers
    alone = [fuse_layers(receiver, [source]).layers for source in (one, two)]
    for layer, (clean, _) in enumerate(receiver):
        expected = clean + (alone[0][layer][0] - clean) + (alone[1][layer][0] - clean)
        torch.testing.assert_close(parallel[layer][0], expected, rtol=1e-5, atol=1e-5)
    stepwise = fuse_layers(fuse_layers(receiver, [one]).layers, [two]).layers
    assert same(fuse_layers(receiver, [one, two], "sequential").layers, stepwise)
    assert not same(parallel, stepwise)


pairings = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=5, unique_by=lambda pair: pair[0])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.one_of(st.none(), pairings), min_size=2, max_size=3), st.integers(0, 99))
def test_the_order_of_sharers_changes_nothing_in_parallel(all_pairs: list[Any], seed: int) -> None:
    receiver = cache(RECEIVER, 5, seed)
    sources = [
        FuserInput(fuser(i, layer_map=[(0, 0)]), cache(SHARER, 5, seed + i), None if p is None else long_pairs(p))
        for i, p in enumerate(all_pairs, 1)
    ]
    first, *others = [fuse_layers(receiver, order).layers for order in itertools.permutations(sources)]
    assert all(same(first, other) for other in others)


def long_pairs(both: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    here, there = pairs(*both)
    return here.long(), there.long()


def test_a_batch_is_its_rows() -> None:
    receiver, sharer, f = cache(RECEIVER, 5, 0, batch=3), cache(SHARER, 6, 1, batch=3), fuser()
    both = pairs((0, 5), (2, 2))
    whole = fuse_layers(receiver, [FuserInput(f, sharer, both)]).layers
    for row in range(3):
        mine = [(k[row : row + 1], v[row : row + 1]) for k, v in receiver]
        theirs = [(k[row : row + 1], v[row : row + 1]) for k, v in sharer]
        alone = fuse_layers(mine, [FuserInput(f, theirs, both)]).layers
        for (k, v), (k_row, v_row) in zip(whole, alone, strict=True):
            torch.testing.assert_close(k[row : row + 1], k_row)
            torch.testing.assert_close(v[row : row + 1], v_row)


def test_the_cache_keeps_its_number_type_whatever_the_fusers() -> None:
    receiver = [(k.bfloat16(), v.bfloat16()) for k, v in cache(RECEIVER, 5, 0)]
    fused = fuse_layers(receiver, [FuserInput(fuser(), cache(SHARER, 5, 1)), FuserInput(fuser(2), cache(SHARER, 5, 2))])
    assert {x.dtype for layer in fused.layers for x in layer} == {torch.bfloat16}
    assert fused.changed == (0, 1, 2)


def test_gradients_reach_the_fuser_and_not_the_caches() -> None:
    f = fuser().train()
    both = pairs((1, 0), (3, 2))
    fused = fuse_layers(cache(RECEIVER, 5, 0), [FuserInput(f, cache(SHARER, 5, 1), both)]).layers
    torch.autograd.backward([k.sum() + v.sum() for k, v in fused])
    assert all(weight.grad is not None for _, _, p in f for weight in p.parameters())


@pytest.mark.parametrize(
    ("both", "message"),
    [
        (pairs((5, 0)), "receiver positions outside of its 5"),
        (pairs((0, 7)), "sharer positions outside of its 7"),
        (pairs((-1, 0)), "receiver positions outside of its 5"),
        (pairs((1, 0), (1, 2)), "paired twice"),
        ((torch.tensor([0, 1]), torch.tensor([0])), "2 receiver positions can't be paired with 1"),
        (None, "the receiver has 5 positions, the sharer 7"),
    ],
)
def test_pairs_that_make_no_sense_are_refused(both: Any, message: str) -> None:
    with pytest.raises(ChannelError, match=message):
        fuse_layers(cache(RECEIVER, 5, 0), [FuserInput(fuser(), cache(SHARER, 7, 1), both)])


def test_caches_of_other_models_are_refused() -> None:
    with pytest.raises(ChannelError, match="got caches of 3 and 3"):
        fuse_layers(cache(RECEIVER, 5, 0), [FuserInput(fuser(), cache(RECEIVER, 5, 1))])
    with pytest.raises(ChannelError, match="batch has 2 rows"):
        fuse_layers(cache(RECEIVER, 5, 0, batch=2), [FuserInput(fuser(), cache(SHARER, 5, 1))])
