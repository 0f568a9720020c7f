"""Limits of a configuration's sizes by what the weights hold: transformers builds a model before it reads them."""

import math
from pathlib import Path
from typing import Any

from cachegraph.errors import ModelError

from .weight_files import count_tensors

__all__ = ["check_config_sizes"]

_LAYERS = 4096  # layers that a model may have beyond its tensors
_WIDTHS = (
    "vocab_size",
    "intermediate_size",
    "hidden_size",
    "n_inner",
    "ffn_dim",
    "_heads",
    "experts",
    "head_dim",
    "_rank",
)
_PACKED = 16  # weights that one number of a quantised file may hold
_SPARE = 2**24  # numbers; a model this large does no harm


def check_config_sizes(config: Any, folder: Path) -> None:
    """Raise ModelError if a model of this configuration would be far larger than the folder's weights.

    A damaged or hostile configuration would otherwise take all memory before its weights are found to be missing.
    """
    tensors, parameters = count_tensors(folder)
    for part in _parts(config.to_dict()):
        for key, value in part.items():
            if key.endswith(("layers", "n_layer")) and _size(value) > max(tensors, _LAYERS):
                raise _error(folder, f"{key} {value:,}", f"{tensors:,} tensors")
        hidden = max(map(_size, map(part.get, ("hidden_size", "n_embd", "d_model"))))
        heads = _size(part.get("num_attention_heads")) * max(1, _size(part.get("head_dim")))
        for key, value in (*part.items(), ("num_attention_heads", heads)):
            wide = key.endswith(_WIDTHS)
            if wide and max(hidden, 1) * _size(value) > _PACKED * parameters + _SPARE:
                raise _error(folder, f"{key} {_size(value):,} at a width of {hidden:,}", f"{parameters:,} numbers")


def _parts(config: dict[str, Any]) -> list[dict[str, Any]]:
    """A configuration and those within it, of a wrapper's text part for example."""
    within = (part for value in config.values() if isinstance(value, dict) for part in _parts(value))
    return [{key: value for key, value in config.items() if isinstance(key, str)}, *within]


def _size(value: Any) -> int:
    """A number as an integer; 0 for anything else, which transformers refuses by itself."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return max(0, int(value)) if usable else 0


def _error(folder: Path, asked: str, held: str) -> ModelError:
    return ModelError(
        f"the config.json of {str(folder)!r} asks for {asked}, and its weights hold {held}: they don't belong "
        "together; fetch the model again"
    )
