"""Completes a configuration by a GGUF file's metadata that transformers leaves out: head sizes, windows, RoPE.

Without them the model would compute something else. Metadata that transformers' configuration can't express is refused.
"""

import math
from typing import Any

from cachegraph.errors import ModelError

from .gguf_metadata import GGUFMetadata

__all__ = ["complete_config"]

_ORIGINAL = [2**power for power in range(10, 21)]  # lengths that Llama 3's factors may have been computed for
_SAME = 1e-3
_SIZES = {
    "moe_intermediate_size": "expert_feed_forward_length",
    "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
    "n_inner": "feed_forward_length",
    "ffn_hidden_size": "feed_forward_length",
    "n_positions": "context_length",
}
_LAYERS_OF_27B = {"gemma2": 46, "gemma3_text": 62}
_EPS = {
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "norm_eps": "attention.layer_norm_rms_epsilon",
    "layer_norm_eps": "attention.layer_norm_epsilon",
    "layer_norm_epsilon": "attention.layer_norm_epsilon",
    "norm_epsilon": "attention.layer_norm_epsilon",
}


def complete_config(config: Any, metadata: GGUFMetadata) -> None:
    """Correct `config`, which transformers has read of the file, by all that the file states. Raises ModelError."""
    if "head_dim" in vars(config) and (dim := metadata.number("attention.key_length")) and _is_one(config, "head_dim"):
        config.head_dim = dim
    if "sliding_window" in vars(config):
        if window := metadata.number("attention.sliding_window"):
            config.sliding_window = window
        elif getattr(config, "layer_types", None) is None:
            config.sliding_window = None  # a default of transformers, which this file does not state
    for name, key in _SIZES.items():
        if name in vars(config) and (size := metadata.number(key)):
            setattr(config, name, size)
    _complete_eps(config, metadata)
    if "query_pre_attn_scalar" in vars(config):  # no file states it; llama.cpp derives it in this way
        largest = _LAYERS_OF_27B.get(config.model_type) == config.num_hidden_layers
        heads = config.num_attention_heads
        config.query_pre_attn_scalar = config.hidden_size // heads if largest else config.head_dim
    _complete_layer_types(config, metadata)
    _check_window(config, metadata)
    _complete_caps(config, metadata)
    _check_experts(config, metadata)
    if (pad := getattr(config, "pad_token_id", None)) is not None and pad >= config.vocab_size:
        config.pad_token_id = None  # a default of another vocabulary
    _complete_rope(config, metadata)


def _complete_eps(config: Any, metadata: GGUFMetadata) -> None:
    """The epsilon of norms: a file states one, by either of two keys."""
    for name in vars(config).keys() & _EPS:
        stated = metadata.get(_EPS[name])
        if stated is None:
            stated = next((eps for key in _EPS.values() if (eps := metadata.get(key)) is not None), None)
        if stated is not None:
            setattr(config, name, float(stated))


def _complete_layer_types(config: Any, metadata: GGUFMetadata) -> None:
    """Which layers have a window, where the file states it: by layer, or that every n-th has none."""
    pattern, kinds = metadata.get("attention.sliding_window_pattern"), getattr(config, "layer_types", None)
    if not pattern or not kinds or not any("sliding" in kind for kind in kinds):
        return
    windows = pattern if isinstance(pattern, list) else [bool((layer + 1) % pattern) for layer in range(len(kinds))]
    if len(windows) != len(kinds):
        raise metadata.unread(f"attention.sliding_window_pattern = {pattern}")
    config.layer_types = ["sliding_attention" if window else "full_attention" for window in windows]


def _check_window(config: Any, metadata: GGUFMetadata) -> None:
    """Raise ModelError where the file limits attention to a window and the configuration has none."""
    window, length = metadata.number("attention.sliding_window"), metadata.number("context_length")
    if not window or (length is not None and window >= length):
        return
    kinds = getattr(config, "layer_types", None)
    if kinds is None and getattr(config, "sliding_window", None):
        return
    if not any("sliding" in kind for kind in kinds or ()):
        raise metadata.unread(f"attention.sliding_window = {window}")


def _complete_caps(config: Any, metadata: GGUFMetadata) -> None:
    """Take caps of logits over. Raises ModelError for one that the configuration can't express."""
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if (cap := metadata.get(key)) is None:
            continue
        if key not in vars(config):
            raise metadata.unread(f"{key} = {cap}")
        setattr(config, key, float(cap))


def _check_experts(config: Any, metadata: GGUFMetadata) -> None:
    """Raise ModelError where the router weighs experts in another way than the configuration."""
    sigmoid = getattr(config, "scoring_func", "softmax") == "sigmoid" or config.model_type == "minimax_m2"
    if metadata.get("expert_gating_func") not in (None, 0, 2 if sigmoid else 1):
        raise metadata.unread(f"expert_gating_func = {metadata.get('expert_gating_func')}")
    normed = metadata.get("expert_weights_norm")
    if normed is not None and bool(normed) != bool(getattr(config, "norm_topk_prob", True)):
        raise metadata.unread(f"expert_weights_norm = {normed}")


def _is_one(config: Any, name: str) -> bool:
    try:
        return isinstance(getattr(config, name), int)
    except RuntimeError:  # it differs by layer, and transformers knows how
        return False


def _complete_rope(config: Any, metadata: GGUFMetadata) -> None:
    known = getattr(config, "rope_parameters", None)
    scaled = _scaling(config, metadata)
    if not isinstance(known, dict):
        if scaled:
            raise ModelError(
                f"the GGUF file {metadata.where!r} scales a RoPE that {config.model_type!r} models don't have; use the "
                "safetensors of this model"
            )
        return
    base, base_swa = metadata.get("rope.freq_base"), metadata.get("rope.freq_base_swa")
    stated = {} if base is None else {"rope_theta": float(base)}
    if "full_attention" not in known:
        config.rope_parameters = {**known, **stated, **scaled, **_partial(config, metadata)}
        return
    full, sliding = {**known["full_attention"], **stated, **scaled}, known["sliding_attention"]
    if base_swa is not None:
        sliding = {**sliding, "rope_theta": float(base_swa)}
    config.rope_parameters = {**known, "full_attention": full, "sliding_attention": sliding}


def _partial(config: Any, metadata: GGUFMetadata) -> dict[str, Any]:
    """The share of each head that is rotated, where it is another than the configuration's. By default all is."""
    dim = metadata.number("attention.key_length") or getattr(config, "head_dim", None)
    dim = dim or config.hidden_size // config.num_attention_heads
    rotated = metadata.number("rope.dimension_count") or dim
    if round(config.rope_parameters.get("partial_rotary_factor", 1.0) * dim) == rotated:
        return {}
    return {"partial_rotary_factor": rotated / dim}


def _scaling(config: Any, metadata: GGUFMetadata) -> dict[str, Any]:
    """Parameters of a scaled RoPE; empty if it is not scaled."""
    original = metadata.number("rope.scaling.original_context_length")
    attention = metadata.get("rope.scaling.attn_factor")
    if (long := metadata.factors("rope_factors_long")) is not None and (
        short := metadata.factors("rope_factors_short")
    ):
        if original is None:
            raise ModelError(
                f"the GGUF file {metadata.where!r} has long factors of RoPE and no original length; fetch it again"
            )
        config.original_max_position_embeddings = original
        return {
            "rope_type": "longrope",
            "short_factor": short,
            "long_factor": long,
            "original_max_position_embeddings": original,
        } | ({"attention_factor": float(attention)} if attention else {})
    if attention not in (None, 0.0, 1.0):
        raise metadata.unread(f"rope.scaling.attn_factor = {attention}")
    if (factors := metadata.factors("rope_freqs")) is not None and any(abs(value - 1) > _SAME for value in factors):
        return _as_llama3(config, factors, metadata)
    kind = metadata.get("rope.scaling.type")
    factor = metadata.get("rope.scaling.factor") or metadata.get("rope.scale_linear")
    if kind in (None, "none") and factor in (None, 0.0, 1.0):
        return {}
    if kind in (None, "linear"):
        return {"rope_type": "linear", "factor": float(factor)} if factor else {}
    if kind == "yarn" and factor:
        betas = {name: metadata.get(f"rope.scaling.yarn_{name}") for name in ("beta_fast", "beta_slow")}
        return {"rope_type": "yarn", "factor": float(factor)} | {
            name: value
            for name, value in {"original_max_position_embeddings": original, **betas}.items()
            if value is not None
        }
    raise ModelError(
        f"the GGUF file {metadata.where!r} scales its RoPE by {kind!r}, which is not known; use another model"
    )


def _as_llama3(config: Any, factors: list[float], metadata: GGUFMetadata) -> dict[str, Any]:
    """The parameters of Llama 3's scaling that give these factors of wavelengths, one for each pair of numbers."""
    factor = max(factors)
    theta = metadata.get("rope.freq_base") or config.rope_parameters["rope_theta"]
    pairs = len(factors)
    waves = [2 * math.pi * theta ** (pair / pairs) for pair in range(pairs)]
    for original in _ORIGINAL:
        made = [_llama3(wave, factor, original) for wave in waves]
        if all(abs(a - b) <= _SAME * b for a, b in zip(made, factors, strict=True)):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": original,
            }
    raise ModelError(
        f"the GGUF file {metadata.where!r} has factors of RoPE that transformers has no parameters for; use the "
        "safetensors of this model"
    )


def _llama3(wave: float, factor: float, original: int) -> float:
    low, high = original / 1.0, original / 4.0
    if wave < high:
        return 1.0
    if wave > low:
        return factor
    smooth = (original / wave - 1.0) / (4.0 - 1.0)
    return 1 / ((1 - smooth) / factor + smooth)
