"""Small GGUF files of transformers models, as llama.cpp's converter writes them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers

__all__ = ["SIZES", "block_bytes", "write_gguf"]

WORDS = [*"abcdefghijklmnopqrstuvwxyz", "Ġ", "th", "the", "Ġthe", "<s>", "</s>"]
SIZES = {
    "vocab_size": len(WORDS),
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.1,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
Array = np.ndarray[Any, Any]


def write_gguf(
    network: Any,
    architecture: str,
    path: Path,
    kind: str = "F32",
    said: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Array] | None = None,
) -> Path:
    """Matrices in blocks of this kind. `said`: more metadata of the architecture; `tensors`: more of them."""
    config = network.config
    writer = gguf.GGUFWriter(path, architecture)
    said = {**_metadata(config), **(said or {})}
    for key, value in said.items():
        add: Any = {str: writer.add_string, float: writer.add_float32, bool: writer.add_bool, int: writer.add_uint32}
        add.get(type(value), writer.add_array)(f"{architecture}.{key}", value)
    _write_tokenizer(writer)
    names = gguf.get_tensor_name_map(
        {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}[architecture], config.num_hidden_layers
    )
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    for name, weights in network.state_dict().items():
        if name in tied:
            continue
        if "experts." in name:
            for part, those in _experts(name, weights.float().numpy()):
                _add(writer, part, those, kind)
            continue
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert found is not None, name
        _add(writer, found, _as_llamacpp_has_it(architecture, name, weights.float().numpy(), config), kind)
    for name, weights in (tensors or {}).items():
        writer.add_tensor(name, weights.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _experts(name: str, weights: Array) -> list[tuple[str, Array]]:
    """The matrices of all experts of a layer: (experts, outputs, inputs) each."""
    block = f"blk.{name.split('.')[2]}"
    if name.endswith("down_proj"):
        return [(f"{block}.ffn_down_exps.weight", weights)]
    gate, up = np.split(weights, 2, axis=1)
    return [(f"{block}.ffn_gate_exps.weight", gate), (f"{block}.ffn_up_exps.weight", up)]


def _metadata(config: Any) -> dict[str, Any]:
    """What every file says of its architecture."""
    kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = getattr(config, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)
    eps = [getattr(config, name, 1e-5) for name in ("norm_epsilon", "layer_norm_eps", "norm_eps", "layer_norm_epsilon")]
    return {
        "context_length": getattr(config, "max_position_embeddings", 2048),
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": getattr(config, "intermediate_size", 4 * config.hidden_size),
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": kv_heads,
        "attention.layer_norm_rms_epsilon": getattr(config, "rms_norm_eps", getattr(config, "norm_eps", 1e-5)),
        "attention.layer_norm_epsilon": next((each for each in eps if each != 1e-5), 1e-5),
        "attention.key_length": dim,
        "attention.value_length": dim,
        "rope.dimension_count": dim,
        "rope.freq_base": float(rope.get("rope_theta", 10000.0)),
    }


def _add(writer: gguf.GGUFWriter, name: str, weights: Array, kind: str) -> None:
    if weights.ndim == 1 or kind == "F32":
        writer.add_tensor(name, weights)
        return
    its = gguf.GGMLQuantizationType[kind]
    try:
        blocks = gguf.quants.quantize(weights, its)
    except NotImplementedError:  # which the library reads only
        blocks = block_bytes(weights.shape, its)
    writer.add_tensor(name, blocks, raw_dtype=its)


def block_bytes(shape: tuple[int, ...], kind: gguf.GGMLQuantizationType) -> Array:
    """Any blocks of that kind whose scales are small: below 64 the upper byte of no 16-bit float is."""
    size, of = gguf.GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(shape[0])
    return random.integers(0, 46, (*shape[:-1], shape[-1] // size * of), dtype=np.uint8)


def _as_llamacpp_has_it(architecture: str, name: str, weights: Array, config: Any) -> Array:
    """The weights in its order and form, such as Llama's heads with their halves interleaved."""
    if architecture in ("gemma2", "gemma3", "nemotron") and name.endswith("norm.weight"):
        return weights + 1
    if name.endswith("shared_expert_gate.weight"):
        return weights.squeeze(0)
    if name.endswith("conv.conv.weight"):
        return weights.squeeze(1)
    if architecture == "gpt2" and name.endswith(("attn.weight", "proj.weight", "fc.weight")):
        return weights.T
    heads = {"q_proj": config.num_attention_heads, "k_proj": getattr(config, "num_key_value_heads", 0)}.get(
        name.split(".")[-2]
    )
    if architecture != "llama" or heads is None:
        return weights
    return weights.reshape(heads, 2, len(weights) // heads // 2, -1).swapaxes(1, 2).reshape(weights.shape)


def _write_tokenizer(writer: gguf.GGUFWriter) -> None:
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_merges(["t h", "th e", "Ġ the"])
    writer.add_token_types([3 if word.startswith("<") else 1 for word in WORDS])
    writer.add_bos_token_id(len(WORDS) - 2)
    writer.add_eos_token_id(len(WORDS) - 1)


def made(config: Any, seed: int = 0) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transformers.AutoModelForCausalLM.from_config(config).eval()
