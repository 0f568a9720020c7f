"""What a model takes, estimated from its folder without loading it."""

from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig

from cachegraph.errors import ModelError, library_errors

from ..spec import ModelSpec
from .model_config import ModelInfo
from .quiet_transformers import quiet_transformers
from .weight_files import count_parameters

__all__ = ["ModelEstimate", "estimate_model"]

_BYTES = {"auto": 2, "bfloat16": 2, "float16": 2, "float32": 4}  # a cluster's nodes choose; most choose 16 bits
_ROOM_PERCENT = 20  # activations, buffers and first KV caches


@dataclass(frozen=True)
class ModelEstimate:
    """Bytes of one replica, and of the KV cache of one token."""

    memory: int
    token_bytes: int


def estimate_model(folder: Path, spec: ModelSpec) -> ModelEstimate:
    """Estimate the model in `folder` as `spec` loads it. Raises ModelError if its files can't be read."""
    width = _BYTES[spec.dtype]
    weights = count_parameters(folder) * (1 if spec.weights == "int8" else width)
    with (
        quiet_transformers(),
        library_errors(lambda why: ModelError(f"the configuration in {str(folder)!r} can't be read: {why}")),
    ):
        info = ModelInfo.from_hf(AutoConfig.from_pretrained(folder, local_files_only=True))
    token = sum(shape.kv_heads * (shape.key_dim + shape.value_dim) for shape in info.shapes) * width
    caches = spec.kv_memory or weights * _ROOM_PERCENT // 100
    return ModelEstimate(weights + caches, token)
