"""What must be known of a model to carry its KV cache around: the one place that reads Hugging Face configurations."""

from dataclasses import dataclass
from typing import Any

__all__ = ["ModelInfo"]

# Kinds of layers whose cache is one K and one V a position.
_KV_LAYERS = {"full_attention", "sliding_attention"}
_ROPE_TYPES = {"default", "linear", "dynamic", "yarn", "llama3"}


@dataclass(frozen=True)
class ModelInfo:
    """A model's geometry. `why_no_cache` says, where it is set, why its KV cache can't travel."""

    model_type: str
    layers: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    windows: tuple[int | None, ...]  # by layer: how many positions back it sees; None is all
    rope_types: tuple[str, ...]  # by layer
    eos_ids: frozenset[int]
    why_no_cache: str | None

    @classmethod
    def from_hf(cls, config: Any, generation: Any = None) -> "ModelInfo":
        """From a transformers configuration (of the text part, where there are several)."""
        config = config.get_text_config(decoder=True)
        layers = config.num_hidden_layers
        kinds = list(getattr(config, "layer_types", None) or [])
        heads = getattr(config, "num_attention_heads", 0) or 0
        return cls(
            model_type=config.model_type,
            layers=layers,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0),
            vocab_size=config.vocab_size,
            max_positions=getattr(config, "max_position_embeddings", None) or 2**31,
            windows=_windows(config, kinds, layers),
            rope_types=_rope_types(config, kinds, layers),
            eos_ids=_eos_ids(config, generation),
            why_no_cache=_why_no_cache(config, kinds, heads),
        )

    @property
    def why_no_rotation(self) -> str | None:
        """Why keys can't be moved to other positions, or None."""
        if "none" in self.rope_types:
            return f"{self.model_type!r} models have no RoPE, so their keys are bound to their positions"
        odd = sorted({kind for kind in self.rope_types if kind not in _ROPE_TYPES})
        return f"RoPE type {odd[0]!r} can't be rotated to new positions" if odd else None


def _windows(config: Any, kinds: list[str], layers: int) -> tuple[int | None, ...]:
    window = getattr(config, "sliding_window", None)
    if kinds:
        return tuple(window if kind == "sliding_attention" else None for kind in kinds)
    return ((window if getattr(config, "use_sliding_window", True) else None),) * layers


def _rope_types(config: Any, kinds: list[str], layers: int) -> tuple[str, ...]:
    parameters = getattr(config, "rope_parameters", None)
    if not parameters:
        return ("none",) * layers
    if "rope_type" in parameters:
        return (parameters["rope_type"],) * layers
    by_kind = {kind: each.get("rope_type", "default") for kind, each in parameters.items() if isinstance(each, dict)}
    return tuple(by_kind.get(kind, "default") for kind in kinds) if by_kind and kinds else ("default",) * layers


def _eos_ids(config: Any, generation: Any) -> frozenset[int]:
    ids: set[int] = set()
    for source in (config, generation):
        eos = getattr(source, "eos_token_id", None)
        ids.update([eos] if isinstance(eos, int) else eos or [])
    return frozenset(ids)


def _why_no_cache(config: Any, kinds: list[str], heads: int) -> str | None:
    odd = sorted(set(kinds) - _KV_LAYERS)
    if odd:
        return f"its {odd[0]!r} layers keep no KV cache"
    if not heads:
        return f"{config.model_type!r} models have no attention layers, so they keep no KV cache"
    if getattr(config, "num_kv_shared_layers", 0):
        return "some of its layers share one KV cache"
    if getattr(config, "attention_chunk_size", None):
        return "its attention is chunked"
    return None
