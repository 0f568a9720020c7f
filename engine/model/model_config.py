"""ModelInfo: what a model keeps in its cache, and where. The one reader of Hugging Face configurations."""

from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any

from ..kv.shapes import KVShape

if TYPE_CHECKING:
    from ..kv.cache import KV
    from ..kv.recurrent_state import StateShapes
    from ..kv.rope_by_length import ByLength

__all__ = ["ModelInfo"]

# Kinds of layers whose cache is one K and one V a position; which are recurrent, transformers' cache says.
_KV_LAYERS = {"full_attention", "sliding_attention"}
# What keeps others from cache edges, where no layer has KV. Those that are not here attend: to chunks, or to what an
# index chooses.
_NO_KV = "keep no KV cache"
_BY_OTHER_RULES = "attend to a part of their KV cache, chosen by rules that ours does not follow"
_EMPTY_LAYERS = {"mlp", "moe"}  # keep nothing, between layers of other kinds


@dataclass(frozen=True)
class ModelInfo:
    """A model's geometry. `why_no_cache` says, where it is set, why its KV cache can't travel."""

    model_type: str
    shapes: tuple[KVShape, ...]  # by layer that keeps a KV cache of its own
    depth: int  # decoder layers
    vocab_size: int
    max_positions: int
    windows: tuple[int | None, ...]  # by decoder layer: how many positions back it sees; None is all
    rope_types: tuple[str, ...]  # by decoder layer
    eos_ids: frozenset[int]
    why_no_cache: str | None
    expands: bool = False  # it computes keys and values of what it caches at every step (MLA)
    by_length: "ByLength | None" = None  # how its RoPE depends on the length of a row
    reversed: bool = False  # of the two things that it then caches the second has RoPE; they are keys here
    alone: bool = False  # it attends by itself, to one row a pass
    states: tuple[int, ...] = ()  # by decoder layer, how many recurrent states it keeps; empty: none does
    state_shapes: "StateShapes" = ()  # by tensor of a row's recurrent state

    @classmethod
    def from_hf(cls, config: Any, generation: Any = None) -> "ModelInfo":
        """From a transformers configuration (of the text part, where there are several).

        Configurations name shapes in many ways: once the model has read something, `measured` corrects them.
        """
        config = config.get_text_config(decoder=True)
        layers = _get(config, "num_hidden_layers") or 0
        kinds = list(_get(config, "layer_types") or [])
        heads = _get(config, "num_attention_heads") or 0
        states = _states(config)
        return cls(
            model_type=config.model_type,
            shapes=tuple(_shape(config, layer) for layer in range(layers)),
            depth=layers,
            vocab_size=config.vocab_size,
            max_positions=_get(config, "max_position_embeddings") or 2**31,
            windows=_windows(config, kinds, layers),
            rope_types=_rope_types(config, kinds, layers),
            eos_ids=_eos_ids(config, generation),
            why_no_cache=_why_no_cache(config, kinds, heads, states),
            states=states,
        )

    def measured(self, kv: "KV") -> "ModelInfo":
        """The same with the shapes of a cache that the model filled, (1, kv_heads, positions, head_dim) by layer."""
        shapes = tuple(KVShape(keys.shape[1], keys.shape[3], values.shape[3]) for keys, values in kv.layers)
        named = kv.state.named() if kv.state is not None else ()
        return replace(self, shapes=shapes, state_shapes=tuple((name, tuple(tensor.shape)) for name, tensor in named))

    @property
    def state_bytes(self) -> int:
        """At most, of one row's recurrent state: many models keep it in float32 whatever they compute in."""
        return sum(4 * prod(shape) for _, shape in self.state_shapes)

    @property
    def layers(self) -> int:
        """How many layers keep a KV cache of their own."""
        return len(self.shapes)

    @cached_property
    def kv_heads(self) -> int | tuple[int, ...]:
        """Of every layer, or by layer where they differ."""
        return _one_or_all([shape.kv_heads for shape in self.shapes])

    @cached_property
    def head_dim(self) -> int | tuple[int | tuple[int, int], ...]:
        """Of every layer, or by layer where they differ; (of keys, of values) where those do."""
        if all(shape.key_dim == shape.value_dim for shape in self.shapes):
            return _one_or_all([shape.key_dim for shape in self.shapes])
        return tuple(
            shape.key_dim if shape.key_dim == shape.value_dim else (shape.key_dim, shape.value_dim)
            for shape in self.shapes
        )

    @cached_property
    def is_uniform(self) -> bool:
        """Every decoder layer keeps keys and values of one shape, and attends to those."""
        alike = len(set(self.shapes)) == 1 and self.shapes[0].key_dim == self.shapes[0].value_dim
        return alike and len(self.shapes) == self.depth and not (self.expands or self.alone or self.states)


def _one_or_all(numbers: list[int]) -> int | tuple[int, ...]:
    return numbers[0] if len(set(numbers)) == 1 else tuple(numbers)


def _get(config: Any, name: str) -> Any:
    """None where it is not there, or transformers won't say it because it differs by layer."""
    try:
        return getattr(config, name, None)
    except RuntimeError:
        return None


def _shape(config: Any, layer: int) -> KVShape:
    own = config if (by_layer := _get(config, "per_layer_config")) is None else by_layer[layer]
    heads = _get(own, "num_attention_heads") or 0
    dim = _get(own, "head_dim") or (_get(own, "hidden_size") // heads if heads else 0)
    return KVShape(_get(own, "num_key_value_heads") or heads, dim, dim)


def _windows(config: Any, kinds: list[str], layers: int) -> tuple[int | None, ...]:
    window = getattr(config, "sliding_window", None)
    if kinds:
        return tuple(window if kind in ("sliding_attention", "hybrid_sliding") else None for kind in kinds)
    return ((window if getattr(config, "use_sliding_window", True) else None),) * layers


def _rope_types(config: Any, kinds: list[str], layers: int) -> tuple[str, ...]:
    parameters = getattr(config, "rope_parameters", None)
    if not parameters:
        return ("none",) * layers
    if "rope_type" in parameters:
        return (parameters["rope_type"],) * layers
    by_kind = {
        kind: settings.get("rope_type", "default")
        for kind, settings in parameters.items()
        if isinstance(settings, dict)
    }
    return tuple(by_kind.get(kind, "default") for kind in kinds) if by_kind and kinds else ("default",) * layers


def _eos_ids(config: Any, generation: Any) -> frozenset[int]:
    ids: set[int] = set()
    for source in (config, generation):
        eos = getattr(source, "eos_token_id", None)
        ids.update([eos] if isinstance(eos, int) else eos or [])
    return frozenset(ids)


def _states(config: Any) -> tuple[int, ...]:
    """By layer, how many recurrent states transformers' cache keeps for it; empty where it keeps none at all."""
    from transformers import DynamicCache
    from transformers.cache_utils import LinearAttentionCacheLayerMixin

    try:
        layers = DynamicCache(config=config).layers
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError):  # it has a cache of a kind of its own
        return ()
    states = tuple(
        layer.number_of_states if isinstance(layer, LinearAttentionCacheLayerMixin) else 0 for layer in layers
    )
    return states if any(states) else ()


def _why_no_cache(config: Any, kinds: list[str], heads: int, states: tuple[int, ...]) -> str | None:
    odd = sorted({kind for index, kind in enumerate(kinds) if kind not in _KV_LAYERS and not any(states[index:][:1])})
    odd = [kind for kind in odd if not (states and kind in _EMPTY_LAYERS)]
    if odd:
        return f"its {odd[0]!r} layers {_NO_KV if odd[0] in _EMPTY_LAYERS else _BY_OTHER_RULES}"
    keeping = [kind for kind in kinds if kind not in _EMPTY_LAYERS]
    if states and not set(keeping) - {"linear_attention", "conv"}:
        return f"its {keeping[0]!r} layers {_NO_KV}"
    if not heads:
        return f"{config.model_type!r} models have no attention layers, so they keep no KV cache"
    if getattr(config, "attention_chunk_size", None):
        return f"its attention is chunked: its layers {_BY_OTHER_RULES}"
    return None
