"""Completes a configuration by a GGUF file's metadata that transformers leaves out: head sizes, windows, RoPE.

Without them the model would compute something else. Metadata that transformers' configuration can't express is refused.
"""

import math
from typing import Any

import numpy as np

from cachegraph.errors import ModelError

__all__ = ["complete_config"]

_ORIGINAL = [2**power for power in range(10, 21)]  # lengths that Llama 3's factors may have been computed for
_SAME = 1e-3
_EXPERTS = {
    "moe_intermediate_size": "expert_feed_forward_length",
    "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
}
_LAYERS_OF_27B = {"gemma2": 46, "gemma3_text": 62}
_SCALES = ("logit_scale", "residual_scale", "embedding_scale", "attention.scale", "attention.clamp_kqv")


def complete_config(config: Any, reader: Any, where: str) -> None:
    """Correct `config`, which transformers has read of the file, by all that the file says. Raises ModelError."""
    said = _Said(reader, where)
    if "head_dim" in vars(config) and (dim := said.number("attention.key_length")) and _is_one(config, "head_dim"):
        config.head_dim = dim
    if "sliding_window" in vars(config) and (window := said.number("attention.sliding_window")):
        config.sliding_window = window
    for name, key in _EXPERTS.items():
        if name in vars(config) and (size := said.number(key)):
            setattr(config, name, size)
    if "query_pre_attn_scalar" in vars(config):  # no file states it; llama.cpp derives it in this way
        largest = _LAYERS_OF_27B.get(config.model_type) == config.num_hidden_layers
        heads = config.num_attention_heads
        config.query_pre_attn_scalar = config.hidden_size // heads if largest else config.head_dim
    _check_window(config, said)
    _complete_scales(config, said)
    if (pad := getattr(config, "pad_token_id", None)) is not None and pad >= config.vocab_size:
        config.pad_token_id = None  # a default of another vocabulary
    rope = {**(_rope(config, said) or {}), **_partial(config, said)}
    if rope:
        known = getattr(config, "rope_parameters", None)
        if not isinstance(known, dict):
            raise ModelError(f"the GGUF file {where!r} scales a RoPE that {config.model_type!r} models have not")
        if "full_attention" in known:  # layers with a window keep theirs
            config.rope_parameters = {**known, "full_attention": {**known["full_attention"], **rope}}
        else:
            config.rope_parameters = {**known, **rope}


class _Said:
    """The metadata and small tensors of a file."""

    def __init__(self, reader: Any, where: str):
        self.where = where
        self._fields = reader.fields
        self._architecture = reader.fields["general.architecture"].contents()
        self._tensors = {each.name: each for each in reader.tensors}

    def get(self, key: str) -> Any:
        field = self._fields.get(f"{self._architecture}.{key}")
        return None if field is None else field.contents()

    def unread(self, what: str) -> ModelError:
        """The refusal of metadata that transformers does not read."""
        return ModelError(
            f"the GGUF file {self.where!r} says `{what}`, which transformers does not read for its architecture "
            f"{self._architecture!r}; use the safetensors of this model"
        )

    def number(self, key: str) -> int | None:
        """None where there is none, or one for each layer."""
        found = self.get(key)
        return int(found) if isinstance(found, int | float) else None

    def factors(self, name: str) -> "list[float] | None":
        found = self._tensors.get(f"{name}.weight")
        return None if found is None else [float(each) for each in np.asarray(found.data, dtype=np.float64).ravel()]


def _check_window(config: Any, said: _Said) -> None:
    """Raise ModelError where the file limits attention to a window and the configuration has none."""
    window, length = said.number("attention.sliding_window"), said.number("context_length")
    if not window or (length is not None and window >= length):
        return
    kinds = getattr(config, "layer_types", None)
    if kinds is None and getattr(config, "sliding_window", None):
        return
    if not any("sliding" in kind for kind in kinds or ()):
        raise said.unread(f"attention.sliding_window = {window}")


def _complete_scales(config: Any, said: _Said) -> None:
    """Take caps of logits over. Raises ModelError for scales that the configuration can't express."""
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if (cap := said.get(key)) is None:
            continue
        if key not in vars(config):
            raise said.unread(f"{key} = {cap}")
        setattr(config, key, float(cap))
    for key in _SCALES:
        if (scale := said.get(key)) not in (None, 0.0, 1.0):
            raise said.unread(f"{key} = {scale}")


def _partial(config: Any, said: _Said) -> dict[str, Any]:
    """The share of each head that is rotated, where the file says another than the configuration."""
    rotated, dim = said.number("rope.dimension_count"), said.number("attention.key_length")
    known = getattr(config, "rope_parameters", None)
    if not isinstance(known, dict) or "full_attention" in known or rotated is None:
        return {}
    dim = dim or getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if round(known.get("partial_rotary_factor", 1.0) * dim) == rotated:
        return {}
    return {"partial_rotary_factor": rotated / dim}


def _is_one(config: Any, name: str) -> bool:
    try:
        return isinstance(getattr(config, name), int)
    except RuntimeError:  # it differs by layer, and transformers knows how
        return False


def _rope(config: Any, said: _Said) -> dict[str, Any] | None:
    """RoPE parameters that are not yet in the configuration, or None."""
    if getattr(config, "model_type", "") == "gpt_oss":  # whose parameters transformers reads
        return None
    if (long := said.factors("rope_factors_long")) is not None and (short := said.factors("rope_factors_short")):
        original = said.number("rope.scaling.original_context_length")
        if original is None:
            raise ModelError(
                f"the GGUF file {said.where!r} has long factors of RoPE and no original length; fetch it again"
            )
        config.original_max_position_embeddings = original
        return {
            "rope_type": "longrope",
            "short_factor": short,
            "long_factor": long,
            "original_max_position_embeddings": original,
        }
    if (factors := said.factors("rope_freqs")) is not None and any(abs(each - 1) > _SAME for each in factors):
        return _as_llama3(config, factors, said.where)
    kind, factor = said.get("rope.scaling.type"), said.get("rope.scaling.factor") or said.get("rope.scale_linear")
    if kind in (None, "none") and factor in (None, 0.0, 1.0):
        return None
    if kind in (None, "linear"):
        return {"rope_type": "linear", "factor": float(factor)} if factor else None
    if kind == "yarn" and factor:
        original = said.number("rope.scaling.original_context_length")
        return {"rope_type": "yarn", "factor": float(factor)} | (
            {"original_max_position_embeddings": original} if original else {}
        )
    raise ModelError(f"the GGUF file {said.where!r} scales its RoPE by {kind!r}, which is not known; use another model")


def _as_llama3(config: Any, factors: list[float], where: str) -> dict[str, Any]:
    """The parameters of Llama 3's scaling that give these factors of wavelengths, one for each pair of numbers."""
    factor = max(factors)
    theta, pairs = config.rope_parameters["rope_theta"], len(factors)
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
        f"the GGUF file {where!r} has factors of RoPE that transformers has no parameters for; use the safetensors of "
        "this model"
    )


def _llama3(wave: float, factor: float, original: int) -> float:
    low, high = original / 1.0, original / 4.0
    if wave < high:
        return 1.0
    if wave > low:
        return factor
    smooth = (original / wave - 1.0) / (4.0 - 1.0)
    return 1 / ((1 - smooth) / factor + smooth)
