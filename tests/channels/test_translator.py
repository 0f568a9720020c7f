"""Translators: their folders, and grafts of one model's cache into another's."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import KINDS, config_of, save_model, save_tokenizer

from cachegraph.channels.cache.align import Aligner
from cachegraph.channels.cache.graft import graft
from cachegraph.channels.cache.sent_cache import SentCache
from cachegraph.channels.cache.translate import Translation
from cachegraph.channels.fusers.files.card import Geometry, ModelEnd
from cachegraph.channels.fusers.files.load import load_fuser, load_ours, load_translator
from cachegraph.channels.fusers.files.weights import CARD, WEIGHTS, save_fuser
from cachegraph.channels.fusers.networks.translator import Translator, new_translator
from cachegraph.channels.payload import Origin
from cachegraph.engine.kv.cache import KV, LayerKV, RowCache
from cachegraph.engine.model.forward import Row, forward
from cachegraph.engine.model.load import LoadedModel, load_model
from cachegraph.errors import ChannelError, FuserError

RECEIVER = ModelEnd(name="receiver", geometry=Geometry(3, 2, 8))
SHARER = ModelEnd(name="sharer", geometry=Geometry(4, 1, 16))


def translator(**options: Any) -> Translator:
    made = new_translator(RECEIVER, SHARER, rank=6, hidden=5, seed=1, **options)
    with torch.no_grad():
        made.network.gate.fill_(0.7)
    return made


def layers(geometry: Geometry, positions: int, seed: int = 0) -> list[LayerKV]:
    numbers = torch.Generator().manual_seed(seed)
    assert isinstance(geometry.kv_heads, int)
    assert isinstance(geometry.head_dim, int)
    shape = (2, 1, geometry.kv_heads, positions, geometry.head_dim)
    return [LayerKV(*torch.randn(shape, generator=numbers).unbind()) for _ in range(geometry.layers)]


def test_a_sharer_position_becomes_a_receiver_position_in_every_layer() -> None:
    made = translator().translate(layers(SHARER.geometry, 7))
    assert [(k.shape, v.shape) for k, v in made] == [((1, 2, 7, 8),) * 2] * 3


def test_positions_are_translated_one_by_one() -> None:
    """So a shuffled cache is translated to the shuffled translation."""
    source, order = layers(SHARER.geometry, 6), torch.tensor([3, 0, 5, 1, 4, 2])
    whole = translator().translate(source)
    shuffled = translator().translate([layer.select(order) for layer in source])
    for one, other in zip(whole, shuffled, strict=True):
        torch.testing.assert_close(one.select(order).keys, other.keys)
        torch.testing.assert_close(one.select(order).values, other.values)


def test_layers_that_it_does_not_read_change_nothing() -> None:
    source = layers(SHARER.geometry, 4)
    other = [source[0], LayerKV(source[1].keys + 1, source[1].values - 1), *source[2:]]
    picky = translator(sharer_layers=[0, 2, 3])
    assert all(
        torch.equal(a, b)
        for one, two in zip(picky.translate(source), picky.translate(other), strict=True)
        for a, b in zip(one, two, strict=True)
    )
    assert not torch.equal(translator().translate(source)[0].keys, translator().translate(other)[0].keys)


def test_a_cache_of_another_shape_is_refused() -> None:
    with pytest.raises(ChannelError, match="reads a cache of 4 layers of 1 KV heads of 16, but got 3 layers"):
        translator().translate(layers(RECEIVER.geometry, 4))


def test_a_saved_translator_comes_back_number_for_number(tmp_path: Path) -> None:
    made = translator()
    save_fuser(made, tmp_path / "t")
    again = load_translator(tmp_path / "t")
    assert isinstance(load_ours(tmp_path / "t"), Translator)
    assert again.card.model_copy(update={"sha256": None}) == made.card
    for name, tensor in made.network.state_dict().items():
        assert torch.equal(tensor, again.network.state_dict()[name])
    assert again.parameter_count == made.parameter_count


def test_a_saved_translator_can_be_read_by_others_of_the_machine(tmp_path: Path) -> None:
    save_fuser(translator(), tmp_path / "t")
    assert all(each.stat().st_mode & 0o044 == 0o044 for each in (tmp_path / "t").iterdir())


def damaged(folder: Path, how: str) -> None:
    card: dict[str, Any] = json.loads((folder / CARD).read_text())
    tensors = load_file(folder / WEIGHTS)
    match how:
        case "NaN":
            tensors["up.weight"][0, 0] = float("nan")
        case "a huge rank":
            card["params"]["rank"] = 1 << 16
        case "a tensor too few":
            del tensors["gate"]
        case "a strange architecture":
            card["architecture"] = "quantum"
        case "layers out of order":
            card["sharer_layers"] = [1, 0]
        case "a layer that is not there":
            card["sharer_layers"] = [0, 9]
        case "a wrong parameter":
            card["params"]["rank"] = -1
    save_file(tensors, folder / WEIGHTS)
    if how != "other bytes":
        import hashlib

        card["sha256"] = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    else:
        card["sha256"] = "0" * 64
    (folder / CARD).write_text(json.dumps(card))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("NaN", "holds NaN or infinity"),
        ("a huge rank", "has shape"),
        ("a tensor too few", "lacks tensor 'gate'"),
        ("a strange architecture", "not a translator that this version knows"),
        ("layers out of order", "must ascend"),
        ("a layer that is not there", "the sharer has 4 layers"),
        ("a wrong parameter", "wrong parameter 'rank'"),
        ("other bytes", "sha256 differs"),
    ],
)
def test_a_damaged_or_hostile_translator_is_refused_with_the_remedy(tmp_path: Path, how: str, said: str) -> None:
    folder = tmp_path / "t"
    save_fuser(translator(), folder)
    damaged(folder, how)
    with pytest.raises(FuserError, match=said):
        load_translator(folder)


def test_a_translator_can_not_fuse(tmp_path: Path) -> None:
    save_fuser(translator(), tmp_path / "t")
    with pytest.raises(FuserError, match="is a translator"):
        load_fuser(tmp_path / "t")


def read(model: LoadedModel, ids: list[int], at: int = 0) -> KV:
    row = Row(ids, RowCache(), "none", positions=torch.arange(at, at + len(ids)))
    with torch.inference_mode():
        forward(model.network, model.info, [row])
    return row.cache.tail()


def end(model: LoadedModel) -> ModelEnd:
    info = model.info
    return ModelEnd(name=model.name, geometry=Geometry(info.layers, info.kv_heads, info.head_dim))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedModel, LoadedModel]:
    made = []
    for kind in ("llama", "gemma3_short_window"):
        folder = save_model(config_of(kind), tmp_path_factory.mktemp(kind))
        save_tokenizer(folder)
        made.append(load_model(folder))
    return made[0], made[1]


def grafted(pair: tuple[LoadedModel, LoadedModel], made: Translator, *, read_at: int, start: int) -> KV:
    receiver, sharer = pair
    assert receiver.tokenizer is not None
    assert sharer.tokenizer is not None
    ids = sharer.tokenizer.encode("a tale", special=False).ids
    origins = [Origin("text", i, i + 1) for i in range(len(ids))]
    plane = SentCache((read(sharer, ids, read_at),), ids, origins, "x", "reader")
    translation = Translation(made, sharer, Aligner(sharer.tokenizer.raw, receiver.tokenizer.raw))
    found = graft(plane, receiver, start, set(), "prompt", translation)
    assert found is not None
    assert found.ids == ids  # both have the same tokenizer
    return found.segments[0]


def test_a_graft_stands_at_the_receivers_positions_wherever_the_sharer_read_it(
    pair: tuple[LoadedModel, LoadedModel],
) -> None:
    """Keys carry the receiver's rotation alone, so a text read elsewhere is the same graft."""
    receiver, sharer = pair
    made = new_translator(end(receiver), end(sharer), rank=8, hidden=0, seed=3)
    near, far = (grafted(pair, made, read_at=at, start=11) for at in (0, 40))
    assert near.positions.tolist() == list(range(11, 11 + len(near)))
    for one, other in zip(near.layers, far.layers, strict=True):
        torch.testing.assert_close(one.keys, other.keys, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(one.values, other.values, rtol=1e-3, atol=1e-4)
    origin = torch.zeros(len(near), dtype=torch.int64)
    still = receiver.rotation.move(near, origin)
    elsewhere = receiver.rotation.move(grafted(pair, made, read_at=0, start=0), origin)
    for one, other in zip(still.layers, elsewhere.layers, strict=True):
        torch.testing.assert_close(one.keys, other.keys, rtol=1e-4, atol=1e-5)


def test_kinds_of_models_can_be_paired_freely() -> None:
    """Geometry is all that a new translator asks of its two ends."""
    assert {"llama", "gemma3_short_window"} <= set(KINDS)
    swapped = new_translator(SHARER, RECEIVER, rank=4, hidden=0)
    assert [k.shape for k, _ in swapped.translate(layers(RECEIVER.geometry, 3))] == [(1, 1, 3, 16)] * 4
