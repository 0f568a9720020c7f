"""Small GGUF files of transformers models, as llama.cpp's converter writes them."""

from collections.abc import Callable, Mapping
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
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(getattr(config, "rms_norm_eps", 1e-5))
    writer.add_layer_norm_eps(getattr(config, "norm_epsilon", 1e-5))
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(dim)
    writer.add_value_length(dim)
    writer.add_rope_dimension_count(dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    for key, value in (said or {}).items():
        writers: dict[type, Callable[[str, Any], None]] = {
            str: writer.add_string,
            float: writer.add_float32,
            int: writer.add_uint32,
        }
        writers[type(value)](f"{architecture}.{key}", value)
    _write_tokenizer(writer)
    names = gguf.get_tensor_name_map(
        {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}[architecture], config.num_hidden_layers
    )
    for name, weights in network.state_dict().items():
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
    """Llama's heads have their halves interleaved for its kind of RoPE."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
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
