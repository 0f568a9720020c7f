"""Refuses weights that stand for other numbers than they are, where the configuration does not say for which.

A library that quantises stores integers, or floats of eight bits, with scales beside them, and notes it in
`quantization_config`. Without this note transformers takes the stored numbers for the weights.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cachegraph.errors import ModelError

from .weight_files import tensor_dtypes

__all__ = ["check_weight_dtypes"]

_NUMBERS = ("F64", "F32", "F16", "BF16")
_SMALL = "F8"  # what all floats of eight bits begin with; without scales they are plain numbers


def check_weight_dtypes(network: Any, unread: Iterable[str], folder: Path) -> None:
    """Raise ModelError where a stored weight needs a scale. `unread`: tensors that have no place in `network`."""
    if getattr(network.config, "quantization_config", None) is not None:
        return
    unread = set(unread)
    scaled = any("scale" in name for name in unread)
    odd = {
        name: dtype
        for name, dtype in tensor_dtypes(folder).items()
        if dtype not in _NUMBERS and not (dtype.startswith(_SMALL) and not scaled)
    }
    if packed := _read(odd, network, unread):
        name, dtype = next(iter(packed.items()))
        more = f" and {len(packed) - 1} more" if len(packed) > 1 else ""
        raise ModelError(
            f"the model in {str(folder)!r} stores {name}{more} as {dtype}, numbers that need a scale, and its "
            "config.json has no `quantization_config` that says which; fetch it again, or take its plain weights"
        )


def _read(odd: Mapping[str, str], network: Any, unread: set[str]) -> dict[str, str]:
    """Those of the tensors that become weights: not what nothing reads, and no tables, masks or counters."""
    if not odd:
        return {}
    ignored = [re.compile(pattern) for pattern in network._keys_to_ignore_on_load_unexpected or ()]
    stored = (*network.named_parameters(), *network.named_buffers())
    non_float_names = {name.rpartition(".")[2] for name, tensor in stored if not tensor.is_floating_point()}
    return {
        name: dtype
        for name, dtype in odd.items()
        if name not in unread
        and not any(pattern.search(name) for pattern in ignored)
        and name.rpartition(".")[2] not in non_float_names  # a path to it may have another name in the file
    }
