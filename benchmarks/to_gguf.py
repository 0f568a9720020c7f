"""A model's folder as a GGUF file for llama.cpp: the same weights, and no tokenizer, since it is given token ids.

    python benchmarks/to_gguf.py smollm2-135m-instruct OUT.gguf [--dtype bf16|f16|q8_0]

Knows the architectures of the two demo models, Llama and Gemma 3.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors import safe_open
from transformers import AutoConfig

from cachegraph.engine.catalogue import ensure
from cachegraph.engine.spec import ModelSpec

__all__ = ["DTYPES", "write_gguf"]

DTYPES = ("bf16", "f16", "q8_0")
ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "gemma3_text": gguf.MODEL_ARCH.GEMMA3}


def write_gguf(folder: Path, path: Path, dtype: str = "bf16") -> Path:
    """Matrices in `dtype`, norms in float32. Where rows are no whole blocks of it: in float16, as llama.cpp does."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    architecture = ARCHITECTURES[config.model_type]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    _write_shape(writer, config)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    kind = gguf.GGMLQuantizationType[dtype.upper()]
    for name, weights in _tensors(folder, config):
        found = names.get_name(name, try_suffixes=(".weight",))
        assert found is not None, name
        if weights.ndim == 1:
            writer.add_tensor(found, weights)
            continue
        block, _ = gguf.GGML_QUANT_SIZES[kind]
        its = gguf.GGMLQuantizationType.F16 if weights.shape[-1] % block else kind
        writer.add_tensor(found, gguf.quants.quantize(weights, its), raw_dtype=its)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_shape(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    ropes = config.rope_parameters
    writer.add_rope_freq_base(ropes.get("full_attention", ropes)["rope_theta"])
    if config.model_type == "llama":
        writer.add_rope_dimension_count(config.head_dim)
    else:
        writer.add_sliding_window(config.sliding_window)


def _tensors(folder: Path, config: Any) -> Iterator[tuple[str, "np.ndarray[Any, Any]"]]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118  # the file is no dict
            yield name, _as_llamacpp_has_it(name, file.get_tensor(name).float().numpy(), config)


def _as_llamacpp_has_it(name: str, weights: "np.ndarray[Any, Any]", config: Any) -> "np.ndarray[Any, Any]":
    """Llama's heads have their halves interleaved for its kind of RoPE; Gemma's norms have their 1 added."""
    if config.model_type == "gemma3_text":
        return weights + 1 if name.endswith("norm.weight") else weights
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None:
        return weights
    rows, columns = weights.shape
    return weights.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="a catalogue name or a folder")
    parser.add_argument("path", type=Path)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    options = parser.parse_args()
    print(write_gguf(ensure(ModelSpec(source=options.model)).folder, options.path, options.dtype))


if __name__ == "__main__":
    main()
