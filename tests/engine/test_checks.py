"""Checks on loading compute in float32 whatever the model's dtype, and leave the model as it was."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import KINDS, SIZES, config_of, save_model
from transformers import models as hf

from cachegraph.engine.cpu import backend as cpu
from cachegraph.engine.kv import rope
from cachegraph.engine.model.load import load_model
from cachegraph.engine.model.verify.in_float32 import in_float32
from cachegraph.engine.model.verify.verdict import Verdict
from cachegraph.engine.model.verify.verify_model import restore_verified, verify_model
from cachegraph.errors import ModelError


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


@torch.inference_mode()
def test_what_a_model_casts_to_the_dtype_of_a_part_is_widened_again(tmp_path: Path) -> None:
    """As the indexer of DeepSeek V3.2 does, which casts to the dtype that it sees before the part is called."""
    network = load_model(save_model(config_of("llama"), tmp_path), dtype=torch.bfloat16).network
    network.set_attn_implementation("eager")
    part = network.lm_head
    part.register_forward_pre_hook(lambda module, given: (given[0].to(torch.bfloat16),), prepend=True)
    with in_float32(network):
        assert network(input_ids=torch.tensor([[1, 2]])).logits.dtype == torch.float32


@torch.inference_mode()
def test_weights_that_a_model_takes_out_of_a_part_are_widened(tmp_path: Path) -> None:
    """As DBRX takes its experts'."""
    config = hf.dbrx.DbrxConfig(
        vocab_size=300,
        d_model=32,
        n_heads=4,
        n_layers=2,
        max_seq_len=512,
        attn_config={"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        ffn_config={"hidden_size": 32, "ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    )
    model = load_model(save_model(config, tmp_path), dtype=torch.bfloat16)
    assert (model.why_no_cache, model.rotation.why_not) == (None, None)


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


def test_a_verdict_can_be_kept_and_read_again(tmp_path: Path) -> None:
    found = load_model(save_model(config_of("smollm3"), tmp_path))
    kept = Verdict.from_dict(json.loads(json.dumps(found.verdict.to_dict())))
    assert kept == found.verdict
    again = restore_verified(found.network, found.info, kept)
    assert (again.why_no_cache, again.rotation.why_not, again.rotation.found) == (None, None, found.rotation.found)


def test_a_row_behind_the_window_and_rows_far_out_are_compared(tmp_path: Path) -> None:
    """With these few tokens, however long the window is: it is narrowed meanwhile."""
    model = load_model(save_model(config_of("gemma3_long_window"), tmp_path))
    assert model.network.config.sliding_window == 256
    said = [each.what for each in model.verdict.compared]
    assert "a row at position 492, and a token behind it" in said
    assert "keys moved to position 492" in said


def test_a_layer_taken_for_one_without_a_window_is_found_out(tmp_path: Path) -> None:
    model = load_model(save_model(config_of("gemma3_long_window"), tmp_path))
    model.network.set_attn_implementation("eager")
    wrong = replace(model.info, windows=(None, None, 256))
    assert verify_model(model.network, wrong).verdict.alone  # with the wrong window our attention is not the model's


@pytest.mark.parametrize("kind", ["softcap of logits", "queries scaled by position", "sinks"])
def test_kernels_that_would_miss_something_small_are_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of these shows in the direction of a few logits."""
    monkeypatch.setattr(cpu, "_LARGE_ENOUGH", 0)
    sizes = {**SIZES, "hidden_size": 64, "intermediate_size": 64, "head_dim": 32, "num_key_value_heads": 4}
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128}
    config: Any = {
        "softcap of logits": lambda: hf.gemma2.Gemma2Config(**sizes, attn_logit_softcapping=None),
        "queries scaled by position": lambda: hf.ministral3.Ministral3Config(
            **sizes, rope_parameters={**yarn, "llama_4_scaling_beta": 0.1}
        ),
        "sinks": lambda: hf.granite_swa.GraniteSWAConfig(
            **{key: value for key, value in sizes.items() if key != "head_dim"}, sliding_window=12
        ),
    }[kind]()
    model = load_model(save_model(config, tmp_path))
    assert model.decoder is None
    assert model.why_no_cache is None


def test_whatever_is_raised_while_keys_are_moved_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise LookupError("in foreign code")

    monkeypatch.setattr(rope, "_difference", fail)
    model = load_model(save_model(config_of("llama"), tmp_path))
    assert model.why_no_cache is None
    assert model.rotation.why_not == "'llama' models rotate keys in a way of their own (in foreign code)"


def test_keys_that_are_normed_after_their_rotation_are_not_moved(tmp_path: Path) -> None:
    config = hf.hunyuan_v1_dense.HunYuanDenseV1Config(**SIZES, head_dim=8)
    folder = save_model(config, tmp_path)
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if "key_layernorm" in name:
            weight += 0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model = load_model(folder)
    assert model.rotation.why_not == "the keys of 'hunyuan_v1_dense' models depend on more than their distance"


def test_a_model_that_takes_no_cache_is_refused_in_a_sentence(tmp_path: Path) -> None:
    sizes = {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    folder = save_model(hf.openai.OpenAIGPTConfig(**sizes), tmp_path)
    with pytest.raises(ModelError, match="models of type 'openai-gpt' can't run here: .*; take another model"):
        load_model(folder)
