"""What a GGUF file states about its model, and which architectures convert exactly.

transformers reads more architectures, some of them in part: it drops metadata and weights silently. The tests convert a
model of each architecture listed here and compare its logits, so that a file of another one is refused by name.
"""

from collections.abc import Collection
from typing import Any

import numpy as np

from cachegraph.errors import ModelError

__all__ = ["ARCHITECTURES", "GGUFMetadata", "check_readable"]

_EXPERTS = ("expert_count", "expert_used_count", "expert_feed_forward_length", "expert_gating_func")
_QWEN35 = (
    "full_attention_interval",
    "nextn_predict_layers",
    "rope.dimension_sections",
    "ssm.conv_kernel",
    "ssm.group_count",
    "ssm.inner_size",
    "ssm.state_size",
    "ssm.time_step_rank",
)
_SHARED = ("expert_shared_feed_forward_length", "expert_shared_count")
# By architecture: the metadata that its conversion reads beside _READ.
ARCHITECTURES: dict[str, tuple[str, ...]] = {
    "bloom": (),
    "falcon": (),
    "gemma2": (),
    "gemma3": ("rope.freq_base_swa",),
    "gpt2": (),
    "lfm2": ("shortconv.l_cache",),
    "llama": (),
    "mamba": ("ssm.conv_kernel", "ssm.inner_size", "ssm.state_size", "ssm.time_step_rank"),
    "minimax-m2": _EXPERTS,
    "nemotron": (),
    "phi3": (),
    "qwen2": (),
    "qwen2moe": (*_EXPERTS, *_SHARED),
    "qwen3": (),
    "qwen35": _QWEN35,
    "qwen35moe": (*_QWEN35, *_EXPERTS, *_SHARED),
    "qwen3moe": _EXPERTS,
    "stablelm": ("use_parallel_residual",),
    "starcoder2": (),
}
_READ = {
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_epsilon",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "attention.value_length",
    "attn_logit_softcapping",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "final_logit_softcapping",
    "pooling_type",  # of sentence embeddings: the language model stays the same
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "tensor_data_layout",
    "vocab_size",
}
# Values that change nothing, of the keys where they are others than zero and the like.
_NOTHING: Collection[Any] = (0, None, "", "none", [])
_NEUTRAL: dict[str, Collection[Any]] = {
    "attention.causal": (True,),
    "attention.max_alibi_bias": (0.0, 8.0),  # the slopes that transformers computes
    "attention.scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "expert_weights_norm": (False, True),  # checked against the configuration
    "expert_weights_scale": (0.0, 1.0),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_ext_factor": (1.0, -1.0),
}


class GGUFMetadata:
    """The metadata and small tensors of a file. `where` names the file in errors."""

    def __init__(self, reader: Any, where: str):
        self.where = where
        self._fields = reader.fields
        self.architecture = str(self.value("general.architecture"))
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}

    def value(self, key: str) -> Any:
        """The value of a key by its whole name, or None."""
        field = self._fields.get(key)
        return None if field is None else field.contents()

    def get(self, key: str) -> Any:
        """The value of a key of the architecture, or None."""
        return self.value(f"{self.architecture}.{key}")

    def number(self, key: str) -> int | None:
        """None if the file states none, or one for each layer."""
        found = self.get(key)
        return int(found) if isinstance(found, int | float) else None

    def factors(self, name: str) -> "list[float] | None":
        """The numbers of a tensor, or None."""
        tensor = self._tensors.get(f"{name}.weight")
        if tensor is None:
            return None
        return [float(number) for number in np.asarray(tensor.data, dtype=np.float64).ravel()]

    def unread(self, what: str) -> ModelError:
        """The refusal of metadata that conversion does not read."""
        return ModelError(
            f"the GGUF file {self.where!r} says `{what}`, which transformers does not read for its architecture "
            f"{self.architecture!r}; use the safetensors of this model"
        )

    @property
    def stated(self) -> list[str]:
        """All keys of the architecture, without its name."""
        start = f"{self.architecture}."
        return [key.removeprefix(start) for key in self._fields if key.startswith(start)]

    @property
    def parts(self) -> int:
        """How many files the model is split into."""
        return int(self.value("split.count") or 1)

    @property
    def prediction_layers(self) -> range:
        """The numbers of the layers that predict several tokens ahead, which transformers does not run."""
        layers = self.number("block_count") or 0
        return range(layers - (self.number("nextn_predict_layers") or 0), layers)


def check_readable(metadata: GGUFMetadata) -> None:
    """Raise ModelError for a file of an architecture, or with metadata, that would not convert exactly."""
    where, architecture = metadata.where, metadata.architecture
    if architecture not in ARCHITECTURES:
        raise ModelError(
            f"the GGUF file {where!r} can't be converted: its architecture {architecture!r} is not one that converts "
            f"exactly ({', '.join(ARCHITECTURES)}); use the safetensors of this model"
        )
    if metadata.parts > 1:
        raise ModelError(
            f"the GGUF file {where!r} is one of {metadata.parts} parts; merge them with `llama-gguf-split --merge`, or "
            "use the safetensors of this model"
        )
    known = _READ.union(ARCHITECTURES[architecture])
    for key in metadata.stated:
        value = metadata.get(key)
        if key not in known and value not in _NEUTRAL.get(key, _NOTHING):
            raise metadata.unread(f"{key} = {value}")
