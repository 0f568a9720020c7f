"""Fusing on unrotated keys: the same as to take RoPE off, correct, and put it on again, wherever each end has read."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lean_fusers import CLOSE, IDS, assert_close, by_hand, geometry, lean, same_bits
from tiny import KINDS, config_of, load_tiny
from torch import Tensor

from cachegraph.channels.cache.apply_fuser import FuserInput, ReceiverRope, fuse_layers
from cachegraph.channels.fusers.networks.base import Fuser
from cachegraph.channels.fusers.networks.create import new_fuser
from cachegraph.channels.fusers.networks.lean import LeanProjector
from cachegraph.engine.kv.cache import KV, LayerKV, RowCache
from cachegraph.engine.model.forward import Row, forward
from cachegraph.engine.model.load import LoadedModel

Load = Callable[[str], LoadedModel]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """`load(kind)` is a random model of that kind; each is made once."""
    made: dict[str, LoadedModel] = {}

    def one(kind: str) -> LoadedModel:
        if kind not in made:
            made[kind] = load_tiny(config_of(kind), tmp_path_factory.mktemp(kind), seed=len(made))
        return made[kind]

    return one


def read(model: LoadedModel, positions: Sequence[int] | range) -> KV:
    row = Row(IDS, RowCache(), "none", positions=torch.tensor(list(positions)))
    with torch.inference_mode():
        forward(model.network, model.info, [row])
    return row.cache.tail()


def run(start: int) -> range:
    return range(start, start + len(IDS))


def fused(made: Fuser, mine: KV, theirs: KV, models: tuple[LoadedModel, LoadedModel], pairs: Any = None) -> KV:
    """As the channel does it: the correction alone is rotated."""
    receiver, sharer = models
    layers, rope = theirs.layers, None
    if made.card.rope == "unrotated":
        layers, rope = sharer.rotation.unrotated(theirs).layers, ReceiverRope(receiver.rotation, mine.positions)
    with torch.no_grad():
        new = fuse_layers(mine.layers, [FuserInput(made, layers, pairs, rope=rope)])
    return KV(tuple(LayerKV(*layer) for layer in new.layers), mine.positions)


# Rotation


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_turns_as_the_whole_cache_moves_and_linearly(kind: str, load: Load) -> None:
    model = load(kind)
    kv, shift = read(model, run(3)), torch.tensor([1, 2, 30, 31, 50, 90])
    moved = model.rotation.move(kv, kv.positions + shift)
    still = model.rotation.unrotated(kv)
    assert not still.positions.any()
    turn, back = model.rotation.shifter(shift), model.rotation.shifter(kv.positions)
    for index, (k, _) in enumerate(kv.layers):
        torch.testing.assert_close(turn(index, k), moved.layers[index].keys)
        torch.testing.assert_close(back(index, still.layers[index].keys), k, **CLOSE)
        other = torch.randn(k.shape, generator=torch.Generator().manual_seed(index))
        apart = turn(index, k) + 0.5 * turn(index, other)
        torch.testing.assert_close(turn(index, k + 0.5 * other), apart, **CLOSE)


# Corrections


@pytest.mark.parametrize("kind", KINDS)
def test_the_correction_is_made_before_rope(kind: str, load: Load) -> None:
    """For every kind of RoPE on the receiver's side; the sharer has other bases by layer and another head_dim."""
    models = load(kind), load("gemma3_long_window")
    made, mine, theirs = lean(*models), read(models[0], run(7)), read(models[1], run(30))
    found = fused(made, mine, theirs, models)
    assert_close(found, by_hand(made, mine, theirs, models))
    assert all((a.keys - b.keys).abs().max() > 0.1 for a, b in zip(found.layers, mine.layers, strict=True))


ascending = st.lists(st.integers(0, 400), min_size=len(IDS), max_size=len(IDS), unique=True).map(sorted)
index = st.integers(0, len(IDS) - 1)


@settings(max_examples=25, deadline=None)
@given(
    mine_at=ascending,
    theirs_at=ascending,
    both=st.lists(st.tuples(index, index), min_size=1, unique_by=lambda pair: pair[0]),
)
def test_any_positions_and_pairs_are_corrected_as_by_hand(
    load: Load, mine_at: list[int], theirs_at: list[int], both: list[tuple[int, int]]
) -> None:
    """In any order, sharer positions several times; what nobody stands for keeps its bits, and no input is written."""
    models = load("llama"), load("qwen3")
    made, mine, theirs = lean(*models), read(models[0], mine_at), read(models[1], theirs_at)
    before = [[x.clone() for layer in kv.layers for x in layer] for kv in (mine, theirs)]
    here, there = (torch.tensor(each) for each in zip(*both, strict=True))
    found = fused(made, mine, theirs, models, (here, there))
    assert_close(found, by_hand(made, mine, theirs, models, (here, there)))
    alone = [i for i in range(len(IDS)) if i not in here.tolist()]
    for old, new in zip(mine.layers, found.layers, strict=True):
        assert all(torch.equal(a[:, :, alone], b[:, :, alone]) for a, b in zip(old, new, strict=True))
    for kv, kept in zip((mine, theirs), before, strict=True):
        assert all(torch.equal(a, b) for a, b in zip([x for layer in kv.layers for x in layer], kept, strict=True))


def shifted(kv: KV, by: int, model: LoadedModel) -> KV:
    return model.rotation.move(kv, kv.positions + by)


@pytest.mark.parametrize("kind", ["llama", "phi", "smollm3", "gemma3_long_window", "llama_yarn"])
def test_where_the_sharer_has_read_changes_no_correction(kind: str, load: Load) -> None:
    """Unlike where keys are corrected with RoPE on."""
    models = load("llama"), load(kind)
    mine, near, far = read(models[0], run(7)), read(models[1], run(0)), read(models[1], run(200))
    made = lean(*models)
    assert_close(fused(made, mine, near, models), fused(made, mine, far, models))
    rotated = lean(*models, rope="rotated")
    pairs = zip(fused(rotated, mine, near, models).layers, fused(rotated, mine, far, models).layers, strict=True)
    assert max(float((a.values - b.values).abs().max()) for a, b in pairs) > 0.01


@pytest.mark.parametrize("kind", ["llama", "phi", "smollm3", "gemma3_long_window", "llama_yarn"])
def test_the_correction_moves_with_the_receiver(kind: str, load: Load) -> None:
    models = load(kind), load("llama")
    theirs, made = read(models[1], run(0)), lean(*models)
    near, far = (fused(made, read(models[0], run(at)), theirs, models) for at in (0, 200))
    assert_close(shifted(near, 200, models[0]), far)


def test_an_untrained_correction_changes_no_bit_of_a_bfloat16_cache(tmp_path: Path) -> None:
    """The keys themselves are never rotated there and back, which would round them."""
    model = load_tiny(config_of("llama"), tmp_path, dtype=torch.bfloat16)
    made = new_fuser("lean", geometry(model), geometry(model), width=6, rope="unrotated").to("cpu", torch.bfloat16)
    mine = read(model, run(70))
    assert made.openness == 1.0
    found = fused(made, mine, read(model, run(0)), (model, model))
    assert same_bits([found], [mine])
    back = model.rotation.move(model.rotation.unrotated(mine), mine.positions)
    assert not same_bits([back], [mine])


def test_gradients_pass_through_the_rotation_to_fuser_and_cache(load: Load) -> None:
    """As they do on the long way, where the whole cache is rotated."""
    models = load("llama"), load("qwen3")
    made, numbers = lean(*models), torch.Generator().manual_seed(0)
    for projector in made.train().projectors.values():
        assert isinstance(projector, LeanProjector)
        projector.noise = lambda shape: torch.full(shape, 0.3)
    mine, theirs = read(models[0], run(7)), models[1].rotation.unrotated(read(models[1], run(30)))
    here, there = torch.tensor([5, 1, 2]), torch.tensor([0, 2, 2])
    weights = [torch.randn(k.shape, generator=numbers) for k, _ in mine.layers]

    def gradients(fuse: Callable[[KV], Sequence[Any]]) -> list[Tensor]:
        layers = tuple(LayerKV(k.clone().requires_grad_(), v.clone().requires_grad_()) for k, v in mine.layers)
        new = fuse(KV(layers, mine.positions))
        total = sum((((k + v.square()) * w).sum() for (k, v), w in zip(new, weights, strict=True)), torch.zeros(()))
        wanted = [p for projector in made.projectors.values() for p in projector.parameters()]
        return list(torch.autograd.grad(total, [*wanted, *(x for layer in layers for x in layer)]))

    def short(kv: KV) -> Sequence[Any]:
        rope = ReceiverRope(models[0].rotation, kv.positions)
        return fuse_layers(kv.layers, [FuserInput(made, theirs.layers, (here, there), rope=rope)]).layers

    def long(kv: KV) -> Sequence[Any]:
        still = models[0].rotation.unrotated(kv)
        new = fuse_layers(still.layers, [FuserInput(made, theirs.layers, (here, there))]).layers
        return models[0].rotation.move(KV(tuple(LayerKV(*x) for x in new), still.positions), kv.positions).layers

    for one, other in zip(gradients(short), gradients(long), strict=True):
        assert one.abs().sum() > 0
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
