"""Fusers and translators between models whose layers differ in KV heads and widths, and keys from values."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from cachegraph.channels.cache.apply_fuser import FuserInput, fuse_layers
from cachegraph.channels.fusers.files.c2c_format import export_reference
from cachegraph.channels.fusers.files.card import Geometry, ModelEnd
from cachegraph.channels.fusers.files.load import load_fuser, load_translator
from cachegraph.channels.fusers.files.weights import save_fuser
from cachegraph.channels.fusers.networks.base import Fuser
from cachegraph.channels.fusers.networks.create import new_fuser
from cachegraph.channels.fusers.networks.translator import new_translator
from cachegraph.engine.kv.cache import LayerKV
from cachegraph.engine.kv.shapes import KVShape
from cachegraph.errors import ChannelError, FuserError

UNEVEN = Geometry(3, (4, 2, 4), ((8, 12), 16, (8, 12)))
LATENT = Geometry(2, 1, ((8, 16),) * 2)
PLAIN = Geometry(4, 2, 6)
PARAMS: dict[str, dict[str, Any]] = {"c2c": {"hidden_dim": 8, "intermediate_dim": 8}, "lean": {"width": 4}}


def cache(geometry: Geometry, positions: int, seed: int = 0) -> tuple[LayerKV, ...]:
    made = torch.Generator().manual_seed(seed)
    return tuple(
        LayerKV(*(torch.randn(1, each.kv_heads, positions, dim, generator=made) for dim in each[1:]))
        for each in geometry.shapes
    )


def fuser(architecture: str, receiver: Geometry, sharer: Geometry) -> Fuser:
    made = new_fuser(architecture, receiver, sharer, gate_logit=1.0, **PARAMS[architecture])
    with torch.no_grad():
        for projector in made.projectors.values():
            for parameter in projector.parameters():
                if parameter.ndim:
                    parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) / 4)
    return made.freeze()


@pytest.mark.parametrize("architecture", PARAMS)
@pytest.mark.parametrize(("receiver", "sharer"), [(UNEVEN, PLAIN), (PLAIN, UNEVEN), (LATENT, UNEVEN), (PLAIN, LATENT)])
def test_a_fuser_corrects_layers_of_any_shapes(
    architecture: str, receiver: Geometry, sharer: Geometry, tmp_path: Path
) -> None:
    """As its projectors do one by one; and it comes back from its folder."""
    made = fuser(architecture, receiver, sharer)
    mine, theirs = cache(receiver, 7), cache(sharer, 9, 1)
    here, there = torch.tensor([0, 2, 6]), torch.tensor([8, 1, 1])
    found = fuse_layers(mine, [FuserInput(made, theirs, (here, there))]).layers
    for layer, source, projector in made:
        given = (each[:, :, there] for each in theirs[source])
        residual = projector.residual(*given, *(each[:, :, here] for each in mine[layer]))
        for old, new, added in zip(mine[layer], found[layer], residual, strict=True):
            assert added is not None
            torch.testing.assert_close(new, old.index_add(2, here, added))
            assert not torch.equal(new, old)
    save_fuser(made, tmp_path / "f")
    back = load_fuser(tmp_path / "f")
    assert (back.card.receiver.geometry, back.card.sharer.geometry) == (receiver, sharer)
    again = fuse_layers(mine, [FuserInput(back.freeze(), theirs, (here, there))]).layers
    assert all(torch.equal(a, b) for x, y in zip(found, again, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize(("receiver", "sharer"), [(UNEVEN, PLAIN), (PLAIN, LATENT)])
def test_a_translator_writes_layers_of_any_shapes(receiver: Geometry, sharer: Geometry, tmp_path: Path) -> None:
    ends = (ModelEnd(name="r", geometry=receiver), ModelEnd(name="s", geometry=sharer))
    save_fuser(new_translator(*ends, rank=5, hidden=4), tmp_path / "t")
    translator, theirs = load_translator(tmp_path / "t"), cache(sharer, 9)
    with torch.no_grad():
        layers = translator.translate(theirs)
        flat = translator.network(translator.read(theirs))
    assert tuple(KVShape(k.shape[1], k.shape[3], v.shape[3]) for k, v in layers) == receiver.shapes
    rows = [each[0].transpose(0, 1).flatten(1) for layer in layers for each in layer]
    assert torch.equal(torch.cat(rows, dim=-1), flat)
    with pytest.raises(ChannelError, match="the translator reads a cache of .*, but got 1 layers of 3 KV heads of 5"):
        translator.read([LayerKV(*torch.zeros(2, 1, 3, 9, 5))])


def test_layers_that_are_alike_are_written_as_one_number() -> None:
    """So a card is as it was before layers could differ, and equal geometries are equal."""
    assert Geometry(2, (3, 3), ((8, 8), 8)) == Geometry(2, 3, 8)
    end = ModelEnd.model_validate({"name": "m", "geometry": {"layers": 2, "kv_heads": 3, "head_dim": 8}})
    assert json.loads(end.model_dump_json())["geometry"] == {"layers": 2, "kv_heads": 3, "head_dim": 8}
    uneven = ModelEnd(name="m", geometry=UNEVEN)
    assert ModelEnd.model_validate_json(uneven.model_dump_json()) == uneven
    assert str(UNEVEN) == "2 layers of 4 KV heads of 8 (keys) and 12 (values) and 1 layers of 2 KV heads of 16"


@pytest.mark.parametrize(
    ("kv_heads", "head_dim", "reason"),
    [([1], 8, "kv_heads has 1 entries for 2 layers"), (1, [8, 8, 8], "head_dim has 3"), (1, [8, [1, 2, 3]], "valid")],
)
def test_a_geometry_that_contradicts_itself_is_refused(kv_heads: Any, head_dim: Any, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        ModelEnd.model_validate({"name": "m", "geometry": {"layers": 2, "kv_heads": kv_heads, "head_dim": head_dim}})


def test_the_published_format_is_refused_for_layers_that_differ(tmp_path: Path) -> None:
    with pytest.raises(FuserError, match="the published format knows one kind of layer"):
        export_reference(fuser("c2c", UNEVEN, PLAIN), tmp_path / "p")
