"""A fuser of one network for all layers: against its formula, written out layer by layer."""

from pathlib import Path

import pytest
import torch
from tiny import config_of, load_tiny

from cachegraph.channels.cache.apply_fuser import FuserInput, ReceiverRope, fuse_layers
from cachegraph.channels.cache.residual_norms import ResidualNorms
from cachegraph.channels.cache.stream_layers import _needed
from cachegraph.channels.fusers.files.card import Geometry
from cachegraph.channels.fusers.files.card_text import card_words
from cachegraph.channels.fusers.files.load import load_fuser
from cachegraph.channels.fusers.files.weights import read_card, save_fuser
from cachegraph.channels.fusers.inventory import describe
from cachegraph.channels.fusers.networks.bottleneck import BottleneckFuser, new_bottleneck
from cachegraph.engine.kv.cache import KV, LayerKV
from cachegraph.errors import ChannelError, FuserError

RECEIVER, SHARER = Geometry(3, 2, 8), Geometry(4, 1, ((16, 8),) * 4)
HERE, THERE = torch.tensor([1, 3]), torch.tensor([4, 0])


def made(receiver: Geometry = RECEIVER, sharer_layers: tuple[int, ...] = (0, 2), **params: int) -> BottleneckFuser:
    """With corrections that show."""
    ends = {"receiver": {"name": "r", "geometry": receiver}, "sharer": {"name": "s", "geometry": SHARER}}
    fuser = new_bottleneck({**ends, "sharer_layers": sharer_layers, "params": {"rank": 5, "hidden": 3, **params}})
    numbers = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in fuser.network.state_dict().values():
            tensor.copy_(torch.rand(tensor.shape, generator=numbers) + 0.5)
    return fuser.freeze()  # type: ignore[return-value]


def caches(geometry: Geometry, positions: int, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    numbers = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(1, shape.kv_heads, positions, shape.key_dim, generator=numbers),
            torch.randn(1, shape.kv_heads, positions, shape.value_dim, generator=numbers),
        )
        for shape in geometry.shapes
    ]


def test_a_new_one_changes_nothing() -> None:
    ends = {"receiver": {"name": "r", "geometry": RECEIVER}, "sharer": {"name": "s", "geometry": SHARER}}
    fuser = new_bottleneck({**ends, "sharer_layers": (0, 1, 2, 3), "params": {"rank": 5}})
    own = caches(RECEIVER, 5, 0)
    fused = fuse_layers(own, [FuserInput(fuser, caches(SHARER, 6, 1), (HERE, THERE))])
    for layer, old in zip(fused.layers, own, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(layer, old, strict=True))


@pytest.mark.parametrize("only", [None, (1,)])
def test_every_layer_gets_its_part_of_one_network_at_paired_positions_alone(only: tuple[int, ...] | None) -> None:
    fuser, own, theirs = made(), caches(RECEIVER, 5, 0), caches(SHARER, 6, 1)
    sizes = ResidualNorms()
    fused = fuse_layers(own, [FuserInput(fuser, theirs, (HERE, THERE), sizes=sizes)], only=only)
    layers = tuple(range(3)) if only is None else only
    assert fused.changed == layers
    features = torch.cat([x[0, 0, THERE] for layer in (0, 2) for x in theirs[layer]], dim=-1)
    y = fuser.network(features)  # (pairs, 3 layers x keys and values x 2 heads x 8)
    for layer in layers:
        for index, (new, old) in enumerate(zip(fused.layers[layer], own[layer], strict=True)):
            added = y.view(2, 3, 2, 2, 8)[:, layer, index].transpose(0, 1)[None]
            expected = old.clone()
            expected[:, :, HERE] += added
            torch.testing.assert_close(new, expected)
    assert set(sizes.by_layer(fuser)) == {0, 1, 2}


def test_keys_are_added_to_with_the_receivers_rotation(tmp_path: Path) -> None:
    model = load_tiny(config_of("llama"), tmp_path, seed=0)
    rope = ReceiverRope(model.rotation, torch.tensor([0, 1, 2, 7, 8]))
    geometry = Geometry(model.info.layers, 2, 8)
    fuser, own, theirs = made(geometry), caches(geometry, 5, 0), caches(SHARER, 6, 1)
    plain = fuse_layers(own, [FuserInput(fuser, theirs, (HERE, THERE))])
    turned = fuse_layers(own, [FuserInput(fuser, theirs, (HERE, THERE), rope=rope)])
    added = [LayerKV(*(new[:, :, HERE] - old[:, :, HERE] for new, old in zip(layer, before, strict=True)))
             for layer, before in zip(plain.layers, own, strict=True)]  # fmt: skip
    expected = model.rotation.move(KV(tuple(added), torch.zeros(2, dtype=torch.int64)), rope.positions[HERE])
    for layer, before, (keys, values) in zip(turned.layers, own, expected.layers, strict=True):
        torch.testing.assert_close(layer[0][:, :, HERE] - before[0][:, :, HERE], keys, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer[1][:, :, HERE] - before[1][:, :, HERE], values, rtol=1e-4, atol=1e-5)


def test_layers_of_different_shapes_each_get_their_own() -> None:
    uneven = Geometry(3, (2, 1, 2), (8, 4, 8))
    fuser, own = made(uneven), caches(uneven, 5, 0)
    fused = fuse_layers(own, [FuserInput(fuser, caches(SHARER, 6, 1), (HERE, THERE))])
    assert [layer[0].shape for layer in fused.layers] == [layer[0].shape for layer in own]
    assert fused.changed == (0, 1, 2)


def test_it_reads_no_deeper_than_its_last_sharer_layer() -> None:
    fuser = made(sharer_layers=(0, 2))
    assert fuser.sharer_layers == (0, 2)
    assert fuser.sharer_depth == 3
    assert _needed({0: fuser}) == {layer: [(0, 0), (0, 2)] for layer in range(3)}
    own, theirs = caches(RECEIVER, 5, 0), caches(SHARER, 6, 1)
    whole, part = (fuse_layers(own, [FuserInput(fuser, theirs[:depth], (HERE, THERE))]) for depth in (4, 3))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(whole.layers, part.layers, strict=True))
    with pytest.raises(ChannelError, match="reads 3 sharer layers, but got 2"):
        fuser.corrections(theirs[:2])


def test_its_folder_gives_the_same_fuser(tmp_path: Path) -> None:
    fuser = made()
    save_fuser(fuser, tmp_path / "it")
    again = load_fuser(tmp_path / "it")
    assert isinstance(again, BottleneckFuser)
    assert again.card.sharer_layers == (0, 2)
    assert again.state().keys() == fuser.state().keys()
    assert all(torch.equal(again.state()[name], tensor) for name, tensor in fuser.state().items())
    facts = describe(tmp_path / "it")
    assert facts.open_layers == (0, 1, 2)
    assert facts.gates_open == 1.0
    words = card_words(read_card(tmp_path / "it"), facts.parameters)
    assert words["layers"] == "all ← 0, 2"
    assert words["sharer depth"] == "the first 3 of 4 layers"


def test_a_damaged_folder_is_refused(tmp_path: Path) -> None:
    save_fuser(made(), tmp_path / "it")
    card = (tmp_path / "it" / "card.json").read_text()
    for old, new, message in (
        ('"rank": 5', '"rank": 6', "has shape"),
        ('"rank": 5', '"rank": 0', "wrong parameter 'rank'"),
        ('"unrotated"', '"rotated"', "reads unrotated keys"),
        ('"sharer_layers": [\n    0,\n    2\n  ]', '"sharer_layers": []', "sharer_layers"),
        ('"architecture": "bottleneck"', '"architecture": "lean"', "sharer_layers"),
    ):
        assert old in card
        (tmp_path / "it" / "card.json").write_text(card.replace(old, new))
        with pytest.raises(FuserError, match=message):
            load_fuser(tmp_path / "it")


def test_a_number_type_is_changed_in_a_copy() -> None:
    fuser = made()
    half = fuser.to("cpu", torch.bfloat16)
    assert half.network.down.weight.dtype == torch.bfloat16
    assert fuser.network.down.weight.dtype == torch.float32
    assert fuser.to("cpu") is fuser
    assert half.parameter_count == fuser.parameter_count == sum(p.numel() for p in fuser.network.parameters())
