"""Which GGUF files are read: architectures, and metadata that transformers alone would drop."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf_cases import CACHES, CASES, WINDOW
from gguf_files import SIZES, made, write_gguf
from transformers import models as hf
from transformers.integrations.gguf import GGUF_CONFIG_ARCHS
from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

from cachegraph.engine.catalogue.convert_gguf import convert_gguf
from cachegraph.engine.catalogue.gguf_metadata import ARCHITECTURES
from cachegraph.engine.model.load import load_model
from cachegraph.errors import ModelError

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def _llama(**more: Any) -> Callable[[], Any]:
    return lambda: hf.llama.LlamaConfig(**SIZES, **more)


# What transformers drops of a file without a word.
REFUSED: dict[str, tuple[str, Callable[[], Any], dict[str, Any], str]] = {
    "biases of attention": ("llama", _llama(attention_bias=True), {}, "holds 384 numbers"),
    "biases of the MLP": ("llama", _llama(mlp_bias=True), {}, "holds 384 numbers"),
    "a window of llama": ("llama", _llama(), WINDOW, "says .attention.sliding_window"),
    "a window of qwen2": ("qwen2", lambda: hf.qwen2.Qwen2Config(**SIZES), WINDOW, "says .attention.sliding_window"),
    "a scale": ("llama", _llama(), {"logit_scale": 8.0}, "says .logit_scale = 8.0"),
    "a cap": ("llama", _llama(), {"final_logit_softcapping": 30.0}, "says .final_logit"),
    "attention to what follows": ("llama", _llama(), {"attention.causal": False}, "says .attention.causal = False"),
    "experts of llama": ("llama", _llama(), {"expert_count": 8}, "says .expert_count = 8"),
    "anything that is new": ("llama", _llama(), {"attention.cleverness": 2}, "says .attention.cleverness = 2"),
    "norms of mamba": (*CASES["mamba"][:2], {**CASES["mamba"][2], "ssm.dt_b_c_rms": True}, "says .ssm.dt_b_c_rms"),
    "routing by sigmoid": (
        *CASES["qwen3moe"][:2],
        {**CASES["qwen3moe"][2], "expert_gating_func": 2},
        "says .expert_gating_func = 2",
    ),
    "weights of experts as they are": (
        *CASES["qwen3moe"][:2],
        {**CASES["qwen3moe"][2], "expert_weights_norm": False},
        "says .expert_weights_norm = False",
    ),
    "layers that predict ahead": ("llama", _llama(), {"nextn_predict_layers": 1}, "says .nextn_predict_layers = 1"),
    "the form of the largest falcons": (
        "falcon",
        lambda: hf.falcon.FalconConfig(
            vocab_size=SIZES["vocab_size"],
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            new_decoder_architecture=True,
            num_kv_heads=2,
        ),
        {"attention.head_count_kv": 2},
        "holds 4,352 numbers",
    ),
}


def converted(path: Path) -> Path:
    convert_gguf(path, path.with_suffix(""), lambda size: None, lambda *_: None)
    return path.with_suffix("")


def config_of(folder: Path) -> Any:
    return transformers.AutoConfig.from_pretrained(folder)


def spread(network: Any) -> Any:
    """Move norms and biases, which begin as ones and zeros."""
    kept = ("A_log", ".D", "dt_bias")
    with torch.no_grad():
        for name, each in (*network.named_parameters(), *network.named_buffers()):
            if (each.ndim == 1 and not name.endswith(kept) and "inv_freq" not in name) or "e_score" in name:
                each += torch.linspace(-0.2, 0.3, len(each))
    return network


@pytest.mark.parametrize("kind", CACHES)
def test_a_file_of_an_architecture_writes_what_the_model_writes(kind: str, tmp_path: Path) -> None:
    architecture, config, _ = CACHES[kind]
    network = made(config())
    model = load_model(converted(write_gguf(network, architecture, tmp_path / "m.gguf")))
    assert (model.why_no_cache, model.rotation.why_not) == (None, None)
    ids = torch.arange(1, 29)[None]
    model.network.set_attn_implementation("sdpa")
    with torch.inference_mode():
        torch.testing.assert_close(model.network(ids).logits, network(ids).logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.filterwarnings("ignore:.*reference PyTorch implementation")
def test_a_file_becomes_the_model_that_its_metadata_describe(kind: str, tmp_path: Path) -> None:
    architecture, config, said = CASES[kind]
    network = spread(made(config()))
    folder = converted(write_gguf(network, architecture, tmp_path / "m.gguf", said=said))
    found = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.arange(1, 29)[None]
    for each in (found, network):
        each.set_attn_implementation("eager")
    with torch.inference_mode():
        torch.testing.assert_close(found(ids).logits, network(ids).logits, rtol=1e-3, atol=1e-3)


def test_every_architecture_that_converts_is_tried_and_every_other_of_transformers_refused_by_name(
    tmp_path: Path,
) -> None:
    assert {case[0] for case in (*CACHES.values(), *CASES.values())} == ARCHITECTURES.keys()
    known = {name.replace("_moe", "moe").replace("_", "-") for name in GGUF_SUPPORTED_ARCHITECTURES}
    others = (known | GGUF_CONFIG_ARCHS.keys() | {"command-r", "t5encoder"}) - ARCHITECTURES.keys()
    others -= {"general", "tokenizer"}
    assert others >= {"deci", "gemma4", "gpt-oss", "mistral", "t5"}
    for architecture in others:
        writer = gguf.GGUFWriter(tmp_path / "m.gguf", architecture)
        writer.add_tensor("token_embd.weight", np.zeros((2, 2), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with pytest.raises(ModelError, match=f"its architecture '{architecture}' is not one that converts exactly"):
            converted(tmp_path / "m.gguf")


def test_an_output_matrix_that_falcon_ties_is_no_reason_to_refuse_its_file(tmp_path: Path) -> None:
    network = made(CASES["falcon"][1]())
    output = {"output.weight": network.lm_head.weight.detach().numpy()}
    assert converted(write_gguf(network, "falcon", tmp_path / "m.gguf", tensors=output)).is_dir()


def test_layers_that_predict_several_tokens_ahead_are_left_out(tmp_path: Path) -> None:
    """They write no token here, and the model computes the same without them."""
    architecture, config, said = CASES["qwen35"]
    network = made(config())
    ahead = {"blk.2.nextn.eh_proj.weight": np.ones((64, 128)), "blk.2.attn_norm.weight": np.ones(64)}
    said = {**said, "block_count": 3, "nextn_predict_layers": 1}
    folder = converted(write_gguf(network, architecture, tmp_path / "m.gguf", said=said, tensors=ahead))
    found = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert found.config.num_hidden_layers == 2
    ids = torch.arange(1, 29)[None]
    with torch.inference_mode():
        torch.testing.assert_close(found(ids).logits, network(ids).logits, rtol=1e-3, atol=1e-3)


def test_a_file_of_a_model_called_mistral_has_no_window_that_it_does_not_state(tmp_path: Path) -> None:
    network = made(hf.llama.LlamaConfig(**SIZES))
    path = write_gguf(network, "llama", tmp_path / "m.gguf", general={"general.name": "mistral"})
    config = config_of(converted(path))
    assert (config.model_type, getattr(config, "sliding_window", None)) == ("llama", None)


@pytest.mark.parametrize("what", REFUSED)
def test_a_file_of_which_transformers_drops_a_part_is_refused(what: str, tmp_path: Path) -> None:
    architecture, config, said, reason = REFUSED[what]
    path = write_gguf(made(config()), architecture, tmp_path / "m.gguf", said=said)
    with pytest.raises(ModelError, match=f"{reason}.*does not read for its architecture '{architecture}'"):
        converted(path)


def test_a_part_of_a_split_file_is_refused(tmp_path: Path) -> None:
    path = write_gguf(made(_llama()()), "llama", tmp_path / "m.gguf", general={"split.count": 3})
    with pytest.raises(ModelError, match="is one of 3 parts; merge them"):
        converted(path)


def test_a_file_that_lacks_a_weight_is_refused_by_its_name(tmp_path: Path) -> None:
    network = made(_llama()())
    network.config.num_hidden_layers = 3
    path = write_gguf(network, "llama", tmp_path / "m.gguf")
    with pytest.raises(ModelError, match=r"lacks the weights \['model.layers.2.*, or names them in another way"):
        converted(path)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64])
def test_whole_numbers_are_refused_as_weights(dtype: Any, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("blk.0.ffn_up.weight", np.ones((4, 4), dtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(
        ModelError, match=rf"stores blk\.0\.ffn_up\.weight as I{np.dtype(dtype).itemsize * 8}, whole num"
    ):
        converted(tmp_path / "m.gguf")


def test_scaled_rope_is_as_the_file_says(tmp_path: Path) -> None:
    """transformers by itself reads none of it, and computes something else."""
    plain = made(hf.llama.LlamaConfig(**SIZES))
    linear = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    yarn = {**linear, "rope.scaling.type": "yarn", "rope.scaling.original_context_length": 512}
    found = config_of(converted(write_gguf(plain, "llama", tmp_path / "linear.gguf", said=linear))).rope_parameters
    assert (found["rope_type"], found["factor"]) == ("linear", 4.0)
    found = config_of(converted(write_gguf(plain, "llama", tmp_path / "yarn.gguf", said=yarn))).rope_parameters
    assert (found["rope_type"], found["factor"], found["original_max_position_embeddings"]) == ("yarn", 4.0, 512)


def test_a_factor_of_attention_that_transformers_computes_otherwise_is_refused(tmp_path: Path) -> None:
    said = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.attn_factor": 0.5}
    path = write_gguf(made(_llama()()), "llama", tmp_path / "m.gguf", said=said)
    with pytest.raises(ModelError, match=r"says .rope\.scaling\.attn_factor = 0\.5"):
        converted(path)


def test_factors_of_llama_3_become_its_parameters(tmp_path: Path) -> None:
    scaled = hf.llama.LlamaConfig(**SIZES, rope_parameters={"rope_theta": 5e5, **LLAMA3})
    network = made(scaled)
    plain = 1 / 5e5 ** (torch.arange(0, 16, 2) / 16)
    factors = (plain / network.model.rotary_emb.inv_freq).numpy()
    path = write_gguf(network, "llama", tmp_path / "m.gguf", tensors={"rope_freqs.weight": factors})
    found = config_of(converted(path)).rope_parameters
    assert found == {"rope_theta": 5e5, **LLAMA3}
    odd = write_gguf(network, "llama", tmp_path / "odd.gguf", tensors={"rope_freqs.weight": factors[::-1].copy()})
    with pytest.raises(ModelError, match="has factors of RoPE that transformers has no parameters for"):
        converted(odd)


def test_long_and_short_factors_of_phi_are_as_the_file_says(tmp_path: Path) -> None:
    network = made(hf.phi3.Phi3Config(**SIZES))
    short, long = np.linspace(1, 2, 8), np.linspace(2, 9, 8)
    tensors = {"rope_factors_short.weight": short, "rope_factors_long.weight": long}
    said = {"rope.scaling.original_context_length": 512, "rope.scaling.attn_factor": 1.19}
    config = config_of(converted(write_gguf(network, "phi3", tmp_path / "m.gguf", said=said, tensors=tensors)))
    assert config.rope_parameters["rope_type"] == "longrope"
    assert config.original_max_position_embeddings == 512
    for name, expected in (("short_factor", short), ("long_factor", long), ("attention_factor", 1.19)):
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
