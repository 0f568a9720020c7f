"""Quantised blocks of GGUF files become the numbers that they stand for."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf_files import SIZES, made, write_gguf
from safetensors import safe_open
from transformers import models as hf

from cachegraph.engine.catalogue.convert_gguf import convert_gguf

QUANTISED = [
    *(
        "F16",
        "BF16",
        "Q4_0",
        "Q4_1",
        "Q5_0",
        "Q5_1",
        "Q8_0",
        "Q2_K",
        "Q3_K",
        "Q4_K",
        "Q5_K",
        "Q6_K",
        "IQ4_NL",
        "IQ4_XS",
    ),
    *("IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_S", "IQ1_M", "TQ1_0", "TQ2_0"),
]
PARTS = {"gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down"}
PLACES = [(layer, part) for layer in range(8) for part in PARTS]  # of a matrix of each kind


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A file with a matrix of each kind, and the folder that it becomes."""
    folder = tmp_path_factory.mktemp("blocks")
    network = made(hf.llama.LlamaConfig(**{**SIZES, "hidden_size": 256, "intermediate_size": 256,
                                           "num_hidden_layers": 8}))  # fmt: skip
    kinds = {f"blk.{layer}.{PARTS[part]}.weight": kind
             for (layer, part), kind in zip(PLACES, QUANTISED, strict=False)}  # fmt: skip
    path = write_gguf(network, "llama", folder / "m.gguf", kinds)
    convert_gguf(path, folder / "m", lambda size: None, lambda *_: None)
    return path, folder / "m"


@pytest.mark.parametrize("kind", QUANTISED)
def test_blocks_of_a_kind_become_the_numbers_they_stand_for(kind: str, files: tuple[Path, Path]) -> None:
    """To the half of bfloat16's last bit at worst: weights of mixed kinds are kept in float32 or in it."""
    path, folder = files
    layer, part = PLACES[QUANTISED.index(kind)]
    stored = {each.name: each for each in gguf.GGUFReader(path).tensors}[f"blk.{layer}.{PARTS[part]}.weight"]
    assert stored.tensor_type.name == kind
    expected = torch.from_numpy(np.array(gguf.quants.dequantize(stored.data, stored.tensor_type), dtype=np.float32))
    assert expected.isfinite().all()
    assert expected.abs().max() > 0
    with safe_open(folder / "model.safetensors", "pt") as weights:
        got = weights.get_tensor(f"model.layers.{layer}.mlp.{part}_proj.weight").float()
    torch.testing.assert_close(got, expected.view_as(got), rtol=2**-8, atol=0)


def test_weights_that_are_mostly_quantised_become_bfloat16(tmp_path: Path) -> None:
    network = made(hf.llama.LlamaConfig(**SIZES))
    path = write_gguf(network, "llama", tmp_path / "m.gguf", "Q4_0")
    convert_gguf(path, tmp_path / "m", lambda size: None, lambda *_: None)
    with safe_open(tmp_path / "m" / "model.safetensors", "pt") as weights:
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.bfloat16}  # noqa: SIM118, no dict
