"""The lean architecture, and fusing with unrotated keys."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import config_of, load_tiny

from cachegraph.channels.cache.apply_fuser import FuserInput, ReceiverRope, fuse_layers
from cachegraph.channels.fusers.files.card import Geometry
from cachegraph.channels.fusers.files.load import load_fuser
from cachegraph.channels.fusers.files.weights import save_fuser
from cachegraph.channels.fusers.networks.base import Fuser
from cachegraph.channels.fusers.networks.create import new_fuser
from cachegraph.channels.fusers.networks.lean import LeanProjector
from cachegraph.engine.kv.cache import KV, LayerKV, RowCache
from cachegraph.engine.model.forward import Row, forward
from cachegraph.engine.model.load import LoadedModel
from cachegraph.errors import FuserError

RECEIVER, SHARER = Geometry(3, 2, 8), Geometry(4, 1, 16)
POSITIONS = 5
AT = st.integers(0, POSITIONS - 1)
ENDS = ((RECEIVER, 0), (SHARER, 1), (SHARER, 5))


def lean(*, gate: float | None = None, filled: bool = True, seed: int = 2, **card: Any) -> Fuser:
    made = new_fuser("lean", RECEIVER, SHARER, width=6, gate_logit=gate, seed=seed, card=card)
    if filled:
        numbers = torch.Generator().manual_seed(seed + 1)
        with torch.no_grad():
            for projector in made.projectors.values():
                for name, parameter in projector.named_parameters():
                    if "up" in name or "alpha" in name:
                        parameter.copy_(torch.randn(parameter.shape, generator=numbers))
    return made


def layers(geometry: Geometry, seed: int, positions: int = POSITIONS) -> list[LayerKV]:
    numbers = torch.Generator().manual_seed(seed)
    assert isinstance(geometry.kv_heads, int)
    assert isinstance(geometry.head_dim, int)
    shape = (2, 1, geometry.kv_heads, positions, geometry.head_dim)
    return [LayerKV(*torch.randn(shape, generator=numbers).unbind()) for _ in range(geometry.layers)]


def close(one: Any, other: Any, **tolerance: Any) -> None:
    for a, b in zip(one, other, strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, **tolerance)


def test_a_new_fuser_is_open_and_changes_nothing() -> None:
    made, mine = lean(filled=False), layers(RECEIVER, 0)
    assert made.openness == 1.0
    close(fuse_layers(mine, [FuserInput(made, layers(SHARER, 1))]).layers, mine)


def test_a_closed_gate_leaves_the_receivers_own_tensors() -> None:
    made, mine = lean(gate=-1.0), layers(RECEIVER, 0)
    fused = fuse_layers(mine, [FuserInput(made, layers(SHARER, 1))])
    assert fused.changed == ()
    assert all(a is b for one, other in zip(fused.layers, mine, strict=True) for a, b in zip(one, other, strict=True))


def test_the_correction_is_alpha_times_up_of_its_half_of_the_bottleneck() -> None:
    made, mine, theirs = lean(), layers(RECEIVER, 0), layers(SHARER, 1)
    layer, other, p = next(iter(made))
    assert isinstance(p, LeanProjector)
    x = torch.cat([t[0].transpose(0, 1).flatten(1) for t in (*theirs[other], *mine[layer])], dim=-1)
    z = torch.nn.functional.gelu(p.down(p.norm(x)))
    z = z + p.mix(z)
    fused = fuse_layers(mine, [FuserInput(made, theirs)]).layers[layer]
    halves = (p.key_up, p.key_alpha, z[:, :6]), (p.value_up, p.value_alpha, z[:, 6:])
    for new, old, (up, alpha, half) in zip(fused, mine[layer], halves, strict=True):
        expected = (up(half).view(POSITIONS, 2, 8) * alpha[:, None]).transpose(0, 1)[None]
        torch.testing.assert_close(new - old, expected, rtol=1e-4, atol=1e-5)


def test_parameters_grow_with_the_width_alone() -> None:
    """A layer: norm, down, mix, two ups, two alphas, a gate."""
    inner = 2 * (16 + 16)
    a_layer = 2 * inner + (inner + 1) * 12 + 13 * 12 + 2 * (6 + 1) * 16 + 2 * 2 + 1
    assert lean().parameter_count == 3 * a_layer


def test_training_reaches_every_parameter_through_a_soft_gate() -> None:
    made = lean().train()
    fused = fuse_layers(layers(RECEIVER, 0), [FuserInput(made, layers(SHARER, 1))])
    sum((k.square().sum() + v.square().sum()) for k, v in fused.layers).backward()  # type: ignore[union-attr]
    for projector in made.projectors.values():
        for name, parameter in projector.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_the_first_step_of_a_new_fuser_moves_what_lets_corrections_through() -> None:
    """`up` starts at zero, so all that lies before it and the gate behind it wait for it."""
    made = lean(filled=False).train()
    fused = fuse_layers(layers(RECEIVER, 0), [FuserInput(made, layers(SHARER, 1))])
    sum((k.square().sum() + v.square().sum()) for k, v in fused.layers).backward()  # type: ignore[union-attr]
    for projector in made.projectors.values():
        moved = {name for name, each in projector.named_parameters() if each.grad is not None and each.grad.any()}
        assert moved == {"key_up.weight", "key_up.bias", "value_up.weight", "value_up.bias"}


def test_gradients_are_those_of_finite_differences() -> None:
    """Of two sharers' corrections of paired positions, in float64, with the same noise every time."""
    fusers = [lean(seed=seed).to("cpu", torch.float64).train() for seed in (2, 4)]
    for made in fusers:
        for projector in made.projectors.values():
            assert isinstance(projector, LeanProjector)
            projector.noise = lambda shape: torch.linspace(0.2, 0.8, shape[2], dtype=torch.float64).view(1, 1, -1, 1)
    mine, one, other = ([(k.double(), v.double()) for k, v in layers(*each)] for each in ENDS)
    pairs = torch.tensor([1, 3, 4]), torch.tensor([0, 2, 2])
    named = [(p, name) for made in fusers for p in made.projectors.values() for name in ("gate_logit", "key_alpha")]
    leaves = [p.get_parameter(name) for p, name in named]

    def corrected(*_: Any) -> tuple[torch.Tensor, ...]:
        fused = fuse_layers(mine, [FuserInput(fusers[0], one, pairs), FuserInput(fusers[1], other)])
        return tuple(x for layer in fused.layers for x in layer)

    assert torch.autograd.gradcheck(corrected, leaves)


def test_the_soft_gate_is_the_sigmoid_of_logit_and_gumbel_noise_over_temperature() -> None:
    """One sample a position, for keys and values and all heads; hard, it is 1."""
    made, mine, theirs = lean(), layers(RECEIVER, 0), layers(SHARER, 1)
    hard = fuse_layers(mine, [FuserInput(made, theirs)]).layers
    drawn = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])
    shapes: list[tuple[int, ...]] = []

    def noise(shape: tuple[int, ...]) -> torch.Tensor:
        shapes.append(shape)
        return drawn.view(shape)

    for projector in made.train().projectors.values():
        assert isinstance(projector, LeanProjector)
        projector.noise = noise
        projector.anneal(150)
    soft = fuse_layers(mine, [FuserInput(made, theirs)]).layers
    gate = torch.sigmoid((1.0 - torch.log(-torch.log(drawn))) / 0.001**0.5)[:, None]
    assert shapes == [(1, 1, POSITIONS, 1)] * 3
    for clean, one, other in zip(mine, soft, hard, strict=True):
        for a, b, c in zip(clean, one, other, strict=True):
            torch.testing.assert_close(b - a, gate * (c - a), rtol=1e-4, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.none() | st.lists(st.tuples(AT, AT), min_size=1, unique_by=lambda pair: pair[0]), min_size=2, max_size=3
    )
)
def test_the_order_of_parallel_sharers_changes_no_bit(all_pairs: list[list[tuple[int, int]] | None]) -> None:
    sources = [
        FuserInput(
            lean(seed=i),
            layers(SHARER, i),
            None if both is None else (torch.tensor([a for a, _ in both]), torch.tensor([b for _, b in both])),
        )
        for i, both in enumerate(all_pairs)
    ]
    first, *others = [fuse_layers(layers(RECEIVER, 9), order).layers for order in itertools.permutations(sources)]
    for other in others:
        close(other, first, rtol=0, atol=0)


def test_a_new_fuser_carries_what_its_card_shall_say() -> None:
    made = new_fuser(
        architecture="lean",
        receiver=RECEIVER,
        sharer=SHARER,
        identities=("one", None),
        alignment="offsets",
        reads="own-prompt",
        rope="unrotated",
        kind="fuse",
    )
    card = made.card
    assert (card.receiver.identity, card.sharer.identity) == ("one", None)
    assert (card.alignment, card.reads, card.rope, card.kind) == ("offsets", "own-prompt", "unrotated", "fuse")
    assert new_fuser("lean", RECEIVER, SHARER, rope="rotated", card={"rope": "unrotated"}).card.rope == "unrotated"
    with pytest.raises(FuserError, match="kind 'graft' has sharer_layers"):
        new_fuser("lean", RECEIVER, SHARER, kind="graft")  # type: ignore[arg-type]


def test_gates_sharpen_as_training_goes_on() -> None:
    projector = next(iter(lean().projectors.values()))
    assert isinstance(temperature := projector.gate_temperature, torch.Tensor)
    seen = []
    for step in (0, 150, 300, 900):
        projector.anneal(step)
        seen.append(float(temperature))
    assert seen[0] == 1.0
    assert seen[1] == pytest.approx(0.001**0.5)
    assert seen[2] == seen[3] == pytest.approx(0.001)


def test_a_saved_fuser_comes_back_number_for_number(tmp_path: Path) -> None:
    made = lean(rope="unrotated", alignment="offsets")
    save_fuser(made, tmp_path / "f")
    again = load_fuser(tmp_path / "f")
    assert again.card.rope == "unrotated"
    mine, theirs = layers(RECEIVER, 0), layers(SHARER, 1)
    close(fuse_layers(mine, [FuserInput(again, theirs)]).layers, fuse_layers(mine, [FuserInput(made, theirs)]).layers)


# Unrotated keys


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_tiny(config_of("llama"), tmp_path_factory.mktemp("llama"))


def read(model: LoadedModel, at: int) -> KV:
    row = Row([4, 8, 15, 16, 23], RowCache(), "none", positions=torch.arange(at, at + POSITIONS))
    with torch.inference_mode():
        forward(model.network, model.info, [row])
    return row.cache.tail()


def test_unrotated_keys_are_corrected_before_rope_and_rotated_behind_it(model: LoadedModel) -> None:
    made = new_fuser("lean", *[Geometry(3, 2, 8)] * 2, width=6, seed=2, card={"rope": "unrotated"})
    with torch.no_grad():
        for projector in made.projectors.values():
            assert isinstance(projector, LeanProjector)
            torch.nn.init.normal_(projector.key_up.weight)
            torch.nn.init.normal_(projector.value_up.weight)
    mine, theirs = read(model, 7), model.rotation.unrotated(read(model, 30))
    here, there = torch.tensor([1, 3, 4]), torch.tensor([0, 2, 2])
    source = FuserInput(made, theirs.layers, (here, there), rope=ReceiverRope(model.rotation, mine.positions))
    fused = KV(tuple(LayerKV(*layer) for layer in fuse_layers(mine.layers, [source]).layers), mine.positions)

    still = model.rotation.unrotated(mine)
    by_hand = fuse_layers(still.layers, [FuserInput(made, theirs.layers, (here, there))])
    expected = model.rotation.move(KV(tuple(LayerKV(*x) for x in by_hand.layers), still.positions), mine.positions)
    close(fused.layers, expected.layers, rtol=1e-4, atol=1e-5)
    assert torch.equal(fused.layers[1].keys[:, :, 0], mine.layers[1].keys[:, :, 0])  # nobody's position


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("elements", [1 << 19, 1])
@pytest.mark.parametrize("pairs", [None, ((4, 1, 2), (0, 3, 3))])
def test_layers_corrected_at_once_or_some_at_a_time_are_those_corrected_one_by_one(
    frozen: bool, elements: int, pairs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cachegraph.channels.cache.apply_fuser._AT_ONCE", elements)
    made, mine, theirs = lean(), layers(RECEIVER, 0), layers(SHARER, 1)
    if frozen:
        made.freeze()
    source = FuserInput(made, theirs, None if pairs is None else tuple(map(torch.tensor, pairs)))  # type: ignore[arg-type]
    at_once = [fuse_layers(mine, [source]).layers for _ in range(2)]
    some = fuse_layers(mine, [source], only=[1]).layers
    monkeypatch.setattr(LeanProjector, "stack", lambda _: None)
    made = lean()
    one_by_one = fuse_layers(mine, [replace(source, fuser=made)]).layers
    for got in at_once:
        close(got, one_by_one, rtol=1e-5, atol=1e-6)
    close(some[1:2], one_by_one[1:2], rtol=1e-5, atol=1e-6)
    assert some[0] is mine[0]


def test_where_float32_is_faster_a_stack_computes_in_it_and_is_closer_to_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exact, mine, theirs = lean(), layers(RECEIVER, 0), layers(SHARER, 1)
    rounded = exact.to("cpu", torch.bfloat16).freeze()
    exact = rounded.to("cpu", torch.float32)
    expected = fuse_layers(mine, [FuserInput(exact, theirs)]).layers

    def error() -> float:
        got = fuse_layers(mine, [FuserInput(replace(rounded), theirs)]).layers
        return sum(
            float((a - b).norm())
            for one, other in zip(got, expected, strict=True)
            for a, b in zip(one, other, strict=True)
        )

    monkeypatch.setattr("cachegraph.engine.cpu.backend.CPUBackend.float32_is_faster", lambda _: False)
    narrow = error()
    monkeypatch.setattr("cachegraph.engine.cpu.backend.CPUBackend.float32_is_faster", lambda _: True)
    assert error() < 0.1 * narrow


def test_a_fuser_that_is_trained_is_never_computed_by_weights_that_were() -> None:
    made, mine, source = lean(), layers(RECEIVER, 0), layers(SHARER, 1)
    before = fuse_layers(mine, [FuserInput(made, source)]).layers
    with torch.no_grad():
        made.projectors[0].key_up.weight.mul_(3.0)  # type: ignore[operator, union-attr]
    after = fuse_layers(mine, [FuserInput(made, source)]).layers
    assert not torch.allclose(before[0][0], after[0][0])
