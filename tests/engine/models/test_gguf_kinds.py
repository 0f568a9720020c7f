"""Which GGUF files are read: architectures, kinds of blocks, and metadata that transformers alone would drop."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf_files import SIZES, made, write_gguf
from transformers import models as hf

from cachegraph.engine.catalogue.convert_gguf import convert_gguf
from cachegraph.engine.model.load import load_model
from cachegraph.errors import ModelError

ARCHITECTURES: dict[str, tuple[str, Callable[[], Any]]] = {
    "llama": ("llama", lambda: hf.llama.LlamaConfig(**SIZES)),
    "qwen2": ("qwen2", lambda: hf.qwen2.Qwen2Config(**SIZES)),
    "qwen3 of small heads": ("qwen3", lambda: hf.qwen3.Qwen3Config(**SIZES, head_dim=32)),
    "phi3": ("phi3", lambda: hf.phi3.Phi3Config(**SIZES)),
    "starcoder2": ("starcoder2", lambda: hf.starcoder2.Starcoder2Config(**SIZES)),
}
WINDOW = {"attention.sliding_window": 16}
GEMMA = {**SIZES, "tie_word_embeddings": True, "head_dim": 64, "sliding_window": 16, "query_pre_attn_scalar": 64}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
EXPERTS_SAID = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 64}
NO_TOKENS = {"vocab_size": SIZES["vocab_size"], "bos_token_id": None, "eos_token_id": None, "initializer_range": 0.1}
# By case: the architecture, a configuration, and what the file says beside sizes that all files say.
MORE: dict[str, tuple[str, Callable[[], Any], dict[str, Any]]] = {
    "gemma2": (
        "gemma2",
        lambda: hf.gemma2.Gemma2Config(**GEMMA, final_logit_softcapping=1.0),
        {**WINDOW, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 1.0},
    ),
    "gemma3": ("gemma3", lambda: hf.gemma3.Gemma3TextConfig(**{**GEMMA, "num_hidden_layers": 7}), WINDOW),
    "falcon": (
        "falcon",
        lambda: hf.falcon.FalconConfig(**NO_TOKENS, hidden_size=256, num_hidden_layers=2, num_attention_heads=4),
        {},
    ),
    "gpt2": ("gpt2", lambda: hf.gpt2.GPT2Config(**NO_TOKENS, n_embd=256, n_layer=2, n_head=4), {}),
    "stablelm of partial RoPE": (
        "stablelm",
        lambda: hf.stablelm.StableLmConfig(**SIZES, layer_norm_eps=0.1, partial_rotary_factor=0.5, use_qkv_bias=True),
        {"rope.dimension_count": 32},
    ),
    "nemotron": (
        "nemotron",
        lambda: hf.nemotron.NemotronConfig(**SIZES, norm_eps=0.1, partial_rotary_factor=0.5),
        {"rope.dimension_count": 32},
    ),
    "qwen2moe": (
        "qwen2moe",
        lambda: hf.qwen2_moe.Qwen2MoeConfig(**SIZES, **EXPERTS, shared_expert_intermediate_size=128),
        {**EXPERTS_SAID, "expert_shared_feed_forward_length": 128},
    ),
    "qwen3moe": (
        "qwen3moe",
        lambda: hf.qwen3_moe.Qwen3MoeConfig(**SIZES, **EXPERTS, head_dim=64, norm_topk_prob=True),
        EXPERTS_SAID,
    ),
    "phi3 of partial RoPE": (
        "phi3",
        lambda: hf.phi3.Phi3Config(**SIZES, partial_rotary_factor=0.5),
        {"rope.dimension_count": 32},
    ),
    "phi3 with a window": ("phi3", lambda: hf.phi3.Phi3Config(**SIZES, sliding_window=16), WINDOW),
    "starcoder2 with a window": (
        "starcoder2",
        lambda: hf.starcoder2.Starcoder2Config(**SIZES, sliding_window=16),
        WINDOW,
    ),
    "llama of small heads": ("llama", lambda: hf.llama.LlamaConfig(**SIZES, head_dim=32, rms_norm_eps=0.1), {}),
}
# What transformers drops of a file without a word.
REFUSED: dict[str, tuple[str, Callable[[], Any], dict[str, Any], str]] = {
    "biases of attention": ("llama", lambda: hf.llama.LlamaConfig(**SIZES, attention_bias=True), {}, "holds 1,536"),
    "biases of the MLP": ("llama", lambda: hf.llama.LlamaConfig(**SIZES, mlp_bias=True), {}, "holds 1,536 numbers"),
    "a window of llama": ("llama", lambda: hf.llama.LlamaConfig(**SIZES), WINDOW, "says .attention.sliding_window"),
    "a window of qwen2": ("qwen2", lambda: hf.qwen2.Qwen2Config(**SIZES), WINDOW, "says .attention.sliding_window"),
    "a scale": ("llama", lambda: hf.llama.LlamaConfig(**SIZES), {"logit_scale": 8.0}, "says .logit_scale = 8.0"),
    "a cap": ("llama", lambda: hf.llama.LlamaConfig(**SIZES), {"final_logit_softcapping": 30.0}, "says .final_logit"),
}
QUANTISED = (
    "F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS IQ3_S IQ3_XXS IQ2_S IQ2_XS IQ2_XXS "
    "IQ1_S IQ1_M TQ1_0 TQ2_0"
)
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def converted(path: Path) -> Path:
    convert_gguf(path, path.with_suffix(""), lambda size: None, lambda *_: None)
    return path.with_suffix("")


def config_of(folder: Path) -> Any:
    return transformers.AutoConfig.from_pretrained(folder)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_file_of_an_architecture_writes_what_the_model_writes(kind: str, tmp_path: Path) -> None:
    architecture, config = ARCHITECTURES[kind]
    network = made(config())
    model = load_model(converted(write_gguf(network, architecture, tmp_path / "m.gguf")))
    assert (model.why_no_cache, model.rotation.why_not) == (None, None)
    ids = torch.arange(1, 29)[None]
    model.network.set_attn_implementation("sdpa")
    with torch.inference_mode():
        torch.testing.assert_close(model.network(ids).logits, network(ids).logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", MORE)
def test_a_file_becomes_the_model_that_its_metadata_describe(kind: str, tmp_path: Path) -> None:
    architecture, config, said = MORE[kind]
    network = made(config())
    with torch.no_grad():
        for each in network.parameters():
            if each.ndim == 1:  # norms and biases, which begin as ones and zeros
                each += torch.linspace(-0.2, 0.3, len(each))
    folder = converted(write_gguf(network, architecture, tmp_path / "m.gguf", said=said))
    found = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.arange(1, 29)[None]
    for each in (found, network):
        each.set_attn_implementation("eager")
    with torch.inference_mode():
        torch.testing.assert_close(found(ids).logits, network(ids).logits, rtol=1e-3, atol=1e-3)


def test_an_output_matrix_that_falcon_ties_is_no_reason_to_refuse_its_file(tmp_path: Path) -> None:
    network = made(MORE["falcon"][1]())
    output = {"output.weight": network.lm_head.weight.detach().numpy()}
    assert converted(write_gguf(network, "falcon", tmp_path / "m.gguf", tensors=output)).is_dir()


@pytest.mark.parametrize("what", REFUSED)
def test_a_file_of_which_transformers_drops_a_part_is_refused(what: str, tmp_path: Path) -> None:
    architecture, config, said, reason = REFUSED[what]
    path = write_gguf(made(config()), architecture, tmp_path / "m.gguf", said=said)
    with pytest.raises(ModelError, match=f"{reason}.*does not read for its architecture '{architecture}'"):
        converted(path)


def test_an_architecture_that_transformers_does_not_read_is_refused_by_its_name(tmp_path: Path) -> None:
    path = write_gguf(
        made(hf.cohere.CohereConfig(**{**SIZES, "tie_word_embeddings": True})), "command-r", tmp_path / "m.gguf"
    )
    with pytest.raises(ModelError, match="architecture command-r is not supported"):
        converted(path)


@pytest.mark.parametrize("kind", QUANTISED.split())
def test_blocks_of_a_kind_become_the_numbers_they_stand_for(kind: str, tmp_path: Path) -> None:
    """To the half of bfloat16's last bit, since such weights are kept in it."""
    network = made(hf.llama.LlamaConfig(**SIZES))
    path = write_gguf(network, "llama", tmp_path / "m.gguf", kind)
    stored = {each.name: each for each in gguf.GGUFReader(path).tensors}["blk.1.ffn_up.weight"]
    assert stored.tensor_type.name == kind
    expected = torch.from_numpy(np.array(gguf.quants.dequantize(stored.data, stored.tensor_type), dtype=np.float32))
    assert expected.isfinite().all()
    assert expected.abs().max() > 0
    got = load_model(converted(path)).network.model.layers[1].mlp.up_proj.weight
    torch.testing.assert_close(got, expected.view_as(got), rtol=2**-8, atol=0)


def test_scaled_rope_is_as_the_file_says(tmp_path: Path) -> None:
    """transformers by itself reads none of it, and computes something else."""
    plain = made(hf.llama.LlamaConfig(**SIZES))
    linear = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    yarn = {**linear, "rope.scaling.type": "yarn", "rope.scaling.original_context_length": 512}
    found = config_of(converted(write_gguf(plain, "llama", tmp_path / "linear.gguf", said=linear))).rope_parameters
    assert (found["rope_type"], found["factor"]) == ("linear", 4.0)
    found = config_of(converted(write_gguf(plain, "llama", tmp_path / "yarn.gguf", said=yarn))).rope_parameters
    assert (found["rope_type"], found["factor"], found["original_max_position_embeddings"]) == ("yarn", 4.0, 512)


def test_factors_of_llama_3_become_its_parameters(tmp_path: Path) -> None:
    scaled = hf.llama.LlamaConfig(**SIZES, rope_parameters={"rope_theta": 5e5, **LLAMA3})
    network = made(scaled)
    plain = 1 / 5e5 ** (torch.arange(0, 64, 2) / 64)
    factors = (plain / network.model.rotary_emb.inv_freq).numpy()
    path = write_gguf(network, "llama", tmp_path / "m.gguf", tensors={"rope_freqs.weight": factors})
    found = config_of(converted(path)).rope_parameters
    assert found == {"rope_theta": 5e5, **LLAMA3}
    odd = write_gguf(network, "llama", tmp_path / "odd.gguf", tensors={"rope_freqs.weight": factors[::-1].copy()})
    with pytest.raises(ModelError, match="has factors of RoPE that transformers has no parameters for"):
        converted(odd)


def test_long_and_short_factors_of_phi_are_as_the_file_says(tmp_path: Path) -> None:
    network = made(hf.phi3.Phi3Config(**SIZES))
    short, long = np.linspace(1, 2, 32), np.linspace(2, 9, 32)
    tensors = {"rope_factors_short.weight": short, "rope_factors_long.weight": long}
    said = {"rope.scaling.original_context_length": 512}
    config = config_of(converted(write_gguf(network, "phi3", tmp_path / "m.gguf", said=said, tensors=tensors)))
    assert config.rope_parameters["rope_type"] == "longrope"
    assert config.original_max_position_embeddings == 512
    for name, expected in (("short_factor", short), ("long_factor", long)):
        assert config.rope_parameters[name] == pytest.approx(expected)


def test_windows_are_as_the_file_says(tmp_path: Path) -> None:
    network = made(hf.phi3.Phi3Config(**SIZES))
    path = write_gguf(network, "phi3", tmp_path / "m.gguf", said={"attention.sliding_window": 16})
    assert config_of(converted(path)).sliding_window == 16


def test_weights_of_other_shapes_than_the_metadata_say_are_refused_in_one_sentence(tmp_path: Path) -> None:
    network = made(hf.llama.LlamaConfig(**SIZES))
    network.config.intermediate_size = 512
    path = write_gguf(network, "llama", tmp_path / "m.gguf")
    with pytest.raises(ModelError, match="can't be converted: its weights have other shapes than its metadata say"):
        converted(path)
