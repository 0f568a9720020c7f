"""Small GGUF files of transformers models, as llama.cpp's converter writes them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from gguf_layout import as_llamacpp_stores_it, experts_of, tensor_name

__all__ = ["SIZES", "block_bytes", "made", "write_gguf"]

WORDS = [*"abcdefghijklmnopqrstuvwxyz", "Ġ", "th", "the", "Ġthe", "<s>", "</s>"]
SIZES = {
    "vocab_size": len(WORDS),
    "hidden_size": 64,
    "intermediate_size": 64,
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
# Which of a model's facts the converter of its architecture writes.
LAYER_NORM = {"bloom", "falcon", "gpt2", "nemotron", "stablelm", "starcoder2"}
NO_ROPE_BASE = {"bloom", "falcon", "gemma2", "gpt2", "mamba", "stablelm"}
ROTATED = {"llama", "minimax-m2", "nemotron", "phi3", "qwen35", "qwen35moe", "stablelm"}
Array = np.ndarray[Any, Any]


def write_gguf(
    network: Any,
    architecture: str,
    path: Path,
    kind: str | Mapping[str, str] = "F32",
    said: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Array] | None = None,
    general: Mapping[str, Any] | None = None,
) -> Path:
    """Matrices in blocks of this kind, or of a kind by tensor.

    `said`: more metadata of the architecture; `general`: of the file; `tensors`: more of them.
    """
    config = network.config
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in {**metadata_of(config, architecture), **(said or {})}.items():
        _add_value(writer, f"{architecture}.{key}", value)
    _write_tokenizer(writer)
    for key, value in (general or {}).items():
        _add_value(writer, key, value)
    known = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(known[architecture], config.num_hidden_layers)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    for name, weights in network.state_dict().items():
        if name in tied:
            continue
        parts = experts_of(name, weights.float().numpy()) or {
            tensor_name(name, names): as_llamacpp_stores_it(architecture, name, weights.float().numpy(), config)
        }
        for part, those in parts.items():
            _add_tensor(writer, part, those, kind if isinstance(kind, str) else kind.get(part, "F32"))
    for name, added in (tensors or {}).items():
        writer.add_tensor(name, added.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def metadata_of(config: Any, architecture: str) -> dict[str, Any]:
    """What every file of the architecture states."""
    heads = getattr(config, "num_attention_heads", 0)
    found = {
        "context_length": getattr(config, "max_position_embeddings", 2048),
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": getattr(config, "intermediate_size", 4 * config.hidden_size),
        "attention.head_count": heads,
        "attention.head_count_kv": getattr(config, "num_key_value_heads", None) or heads,
    }
    names = ["norm_epsilon", "layer_norm_eps", "norm_eps", "layer_norm_epsilon", "rms_norm_eps"]
    eps = next(getattr(config, name) for name in names if hasattr(config, name))
    found[f"attention.layer_norm_{'' if architecture in LAYER_NORM else 'rms_'}epsilon"] = eps
    rope = getattr(config, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)
    if architecture not in NO_ROPE_BASE:
        found["rope.freq_base"] = float(rope.get("rope_theta", 10000.0))
    dim = vars(config).get("head_dim")
    if dim is not None:
        found |= {"attention.key_length": dim, "attention.value_length": dim}
    if architecture in ROTATED:
        dim = dim or config.hidden_size // heads
        found["rope.dimension_count"] = round(dim * rope.get("partial_rotary_factor", 1.0))
    return found


def _add_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    add: Any = {str: writer.add_string, float: writer.add_float32, bool: writer.add_bool, int: writer.add_uint32}
    add.get(type(value), writer.add_array)(key, value)


def _add_tensor(writer: gguf.GGUFWriter, name: str, weights: Array, kind: str) -> None:
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
