"""Checks on loading compute in float32 whatever the model's dtype, and leave the model as it was."""

from pathlib import Path

import pytest
import torch
from tiny import KINDS, config_of, save_model

from cachegraph.engine.checks import in_float32
from cachegraph.engine.load import load_model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_16_bit_weights_compute_in_float32(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    folder = save_model(config_of(kind), tmp_path)
    network = load_model(folder, dtype=dtype).network
    network.set_attn_implementation("eager")
    wide = load_model(folder).network
    for mine, other in zip(wide.parameters(), network.parameters(), strict=True):
        mine.data.copy_(other)
    wide.set_attn_implementation("eager")
    ids = torch.arange(1, 9)[None]
    before, kinds = network(input_ids=ids).logits, [parameter.dtype for parameter in network.parameters()]
    with in_float32(network):
        got = network(input_ids=ids).logits
    assert got.dtype == torch.float32
    expected = wide(input_ids=ids).logits  # but for constants that a model rounds to its dtype, such as Gemma's scale
    torch.testing.assert_close(got, expected, rtol=0, atol=0.02 * float(expected.std()))
    assert torch.equal(network(input_ids=ids).logits, before)
    assert [parameter.dtype for parameter in network.parameters()] == kinds


def test_weights_are_narrow_again_after_a_failure(tmp_path: Path) -> None:
    network = load_model(save_model(config_of("llama"), tmp_path), dtype=torch.bfloat16).network
    with pytest.raises(IndexError), in_float32(network):
        network(input_ids=torch.tensor([[10**6]]))
    assert {parameter.dtype for parameter in network.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_is_trusted_in_16_bits_as_in_32(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    folder = save_model(config_of(kind), tmp_path)
    exact, narrow = load_model(folder), load_model(folder, dtype=dtype)
    assert (narrow.why_no_cache, narrow.rotation.why_not) == (exact.why_no_cache, exact.rotation.why_not)
