"""Where llama.cpp's converter puts a model's weights, and in which order and form."""

from typing import Any

import numpy as np

__all__ = ["as_llamacpp_stores_it", "experts_of", "tensor_name"]

Array = np.ndarray[Any, Any]
# What stands in the files for a weight that the library's table has no name for.
RENAMED = {"linear_attn.dt_bias": "linear_attn.dt_proj.bias", "mlp.e_score_correction_bias": "exp_probs_b.bias"}
ADDS_ONE = ("gemma2", "gemma3", "nemotron", "qwen35", "qwen35moe")  # to the weights of norms


def tensor_name(name: str, names: Any) -> str:
    """`names` is the library's table of tensor names for the architecture."""
    for own, written in RENAMED.items():
        name = name.replace(own, written)
    if "exp_probs_b" in name:
        return f"blk.{name.split('.')[2]}.exp_probs_b.bias"
    suffixes = (".weight", ".bias")
    found = names.get_name(name, suffixes) or names.get_name(name.removeprefix("transformer."), suffixes)
    assert found is not None, name
    return str(found)


def experts_of(name: str, weights: Array) -> dict[str, Array]:
    """The matrices of all experts of a layer, (experts, outputs, inputs) each; empty for other weights."""
    if "experts." not in name:
        return {}
    block = f"blk.{name.split('.')[2]}"
    if name.endswith("down_proj"):
        return {f"{block}.ffn_down_exps.weight": weights}
    gate, up = np.split(weights, 2, axis=1)
    return {f"{block}.ffn_gate_exps.weight": gate, f"{block}.ffn_up_exps.weight": up}


def as_llamacpp_stores_it(architecture: str, name: str, weights: Array, config: Any) -> Array:
    """The weights in its order and form, such as Llama's heads with their halves interleaved."""
    if name.endswith("A_log"):
        weights = -np.exp(weights)
    if name.endswith(("conv.conv.weight", "conv1d.weight")):
        weights = weights.squeeze(1)
    if name.endswith("shared_expert_gate.weight"):
        return weights.squeeze(0)
    if "linear_attn." in name:
        return _tiled(name, weights, config)
    if architecture in ADDS_ONE and name.endswith("norm.weight"):
        return weights + 1
    if architecture == "gpt2" and name.endswith(("attn.weight", "proj.weight", "fc.weight")):
        return weights.T
    if architecture == "bloom" and "query_key_value" in name:
        by_head = weights.reshape(config.n_head, 3, -1, *weights.shape[1:])
        return by_head.swapaxes(0, 1).reshape(weights.shape)
    heads = (
        {"q_proj": config.num_attention_heads, "k_proj": getattr(config, "num_key_value_heads", 0)}.get(
            name.split(".")[-2]
        )
        if architecture == "llama"
        else None
    )
    if heads is None:
        return weights
    return weights.reshape(heads, 2, len(weights) // heads // 2, -1).swapaxes(1, 2).reshape(weights.shape)


def _tiled(name: str, weights: Array, config: Any) -> Array:
    """Of linear attention: value heads, which transformers groups by key head, with one of each key head in turn."""
    keys, values = config.linear_num_key_heads, config.linear_num_value_heads
    what = name.split("linear_attn.")[1].removesuffix(".weight")
    if what == "norm":
        return weights
    width = 1 if what in ("A_log", "dt_bias", "in_proj_a", "in_proj_b") else config.linear_value_head_dim
    start = 2 * keys * config.linear_key_head_dim if what in ("in_proj_qkv", "conv1d") else 0
    axis = 1 if what == "out_proj" else 0
    weights = np.moveaxis(weights, axis, 0)
    rest = weights[start:]
    tiled = rest.reshape(keys, values // keys, width, *rest.shape[1:]).swapaxes(0, 1).reshape(rest.shape)
    return np.ascontiguousarray(np.moveaxis(np.concatenate([weights[:start], tiled]), 0, axis))
