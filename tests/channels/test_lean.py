"""The lean architecture, and fusing with unrotated keys."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import config_of, load_tiny

from cachegraph.channels.cache.residual import Source, Turning, fuse_layers
from cachegraph.channels.fusers.base import Fuser
from cachegraph.channels.fusers.card import Geometry
from cachegraph.channels.fusers.create import new_fuser
from cachegraph.channels.fusers.load import load_fuser
from cachegraph.channels.fusers.weights import save_fuser
from cachegraph.engine.forward import Row, forward
from cachegraph.engine.kv import KV, LayerKV, RowCache
from cachegraph.engine.load import LoadedModel

RECEIVER, SHARER = Geometry(3, 2, 8), Geometry(4, 1, 16)
POSITIONS = 5


def lean(*, gate: float | None = None, filled: bool = True, **card: Any) -> Fuser:
    made = new_fuser("lean", RECEIVER, SHARER, width=6, gate_logit=gate, seed=2, card=card)
    if filled:
        numbers = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for projector in made.projectors.values():
                for name, parameter in projector.named_parameters():
                    if "up" in name or "alpha" in name:
                        parameter.copy_(torch.randn(parameter.shape, generator=numbers))
    return made


def layers(geometry: Geometry, seed: int, positions: int = POSITIONS) -> list[LayerKV]:
    numbers = torch.Generator().manual_seed(seed)
    shape = (1, geometry.kv_heads, positions, geometry.head_dim)
    return [LayerKV(*torch.randn(2, *shape, generator=numbers).unbind()) for _ in range(geometry.layers)]


def close(one: Any, other: Any, **tolerance: float) -> None:
    for a, b in zip(one, other, strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, **tolerance)


def test_a_new_fuser_is_open_and_changes_nothing() -> None:
    made, mine = lean(filled=False), layers(RECEIVER, 0)
    assert made.openness == 1.0
    close(fuse_layers(mine, [Source(made, layers(SHARER, 1))]).layers, mine)


def test_a_closed_gate_leaves_the_receivers_own_tensors() -> None:
    made, mine = lean(gate=-1.0), layers(RECEIVER, 0)
    fused = fuse_layers(mine, [Source(made, layers(SHARER, 1))])
    assert fused.changed == ()
    assert all(a is b for one, other in zip(fused.layers, mine, strict=True) for a, b in zip(one, other, strict=True))


def test_the_correction_is_alpha_times_up_of_its_half_of_the_bottleneck() -> None:
    made, mine, theirs = lean(), layers(RECEIVER, 0), layers(SHARER, 1)
    layer, other, p = next(iter(made))
    x = torch.cat([t[0].transpose(0, 1).flatten(1) for t in (*theirs[other], *mine[layer])], dim=-1)
    z = torch.nn.functional.gelu(p.down(p.norm(x)))
    z = z + p.mix(z)
    expected = (p.value_up(z[:, 6:]).view(POSITIONS, 2, 8) * p.value_alpha[:, None]).transpose(0, 1)[None]
    fused = fuse_layers(mine, [Source(made, theirs)]).layers[layer]
    torch.testing.assert_close(fused[1] - mine[layer].values, expected)


def test_parameters_grow_with_the_width_alone() -> None:
    """A layer: norm, down, mix, two ups, two alphas, a gate."""
    inner = 2 * (16 + 16)
    a_layer = 2 * inner + (inner + 1) * 12 + 13 * 12 + 2 * (6 + 1) * 16 + 2 * 2 + 1
    assert lean().parameter_count == 3 * a_layer


def test_training_reaches_every_parameter_through_a_soft_gate() -> None:
    made = lean().train()
    fused = fuse_layers(layers(RECEIVER, 0), [Source(made, layers(SHARER, 1))])
    sum((k.square().sum() + v.square().sum()) for k, v in fused.layers).backward()  # type: ignore[union-attr]
    for projector in made.projectors.values():
        for name, parameter in projector.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


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
    close(fuse_layers(mine, [Source(again, theirs)]).layers, fuse_layers(mine, [Source(made, theirs)]).layers)


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
            torch.nn.init.normal_(projector.key_up.weight)  # type: ignore[arg-type]
            torch.nn.init.normal_(projector.value_up.weight)  # type: ignore[arg-type]
    mine, theirs = read(model, 7), model.rotation.unrotated(read(model, 30))
    here, there = torch.tensor([1, 3, 4]), torch.tensor([0, 2, 2])
    source = Source(made, theirs.layers, (here, there), turning=Turning(model.rotation, mine.positions))
    fused = KV(tuple(LayerKV(*layer) for layer in fuse_layers(mine.layers, [source]).layers), mine.positions)

    still = model.rotation.unrotated(mine)
    by_hand = fuse_layers(still.layers, [Source(made, theirs.layers, (here, there))])
    expected = model.rotation.move(KV(tuple(LayerKV(*x) for x in by_hand.layers), still.positions), mine.positions)
    close(fused.layers, expected.layers, rtol=1e-4, atol=1e-5)
    assert torch.equal(fused.layers[1].keys[:, :, 0], mine.layers[1].keys[:, :, 0])  # nobody's position
