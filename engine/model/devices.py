"""The devices of a model's layers: one, or several by accelerate's device map.

A layer's keys and values stay on the layer's device; token ids go to the first. accelerate moves activations between
layers.
"""

import threading
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import nn

from cachegraph.errors import ModelError

__all__ = ["DeviceLock", "DeviceMap", "check_map", "home_of", "is_spread", "layer_devices"]

DeviceMap = Literal["auto", "balanced", "balanced_low_0", "sequential"] | Mapping[str, str | int]

# One computation at a time on a device: two that share its cores or its memory are slower than one after the other.
_locks: dict[torch.device, threading.Lock] = {}


def is_spread(network: Any) -> bool:
    """Whether its weights are on several devices."""
    return len(set(getattr(network, "hf_device_map", {}).values())) > 1


def home_of(network: Any) -> torch.device:
    """The device that token ids go to."""
    device: torch.device = network.get_input_embeddings().weight.device
    return device


def layer_devices(network: Any, layers: int) -> tuple[torch.device, ...]:
    """By layer, where its keys and values are computed."""
    if not is_spread(network):
        return (home_of(network),) * layers
    found: dict[int, torch.device] = {}
    for module in network.get_decoder().modules():
        index = getattr(module, "layer_idx", None)
        if isinstance(index, int) and isinstance(module, nn.Module):
            weight = next(module.parameters(), None)
            if weight is not None:
                found.setdefault(index, weight.device)
    return tuple(found.get(index, home_of(network)) for index in range(layers))


def check_map(network: Any, device_map: object, name: str) -> None:
    """Raise ModelError for a name in a device map that is not a part of the model.

    Also where accelerate keeps weights elsewhere and fetches them at every step.
    """
    parts = {part for part, _ in [*network.named_modules(), *network.named_parameters()]}
    for part in device_map if isinstance(device_map, Mapping) else ():
        if part not in parts:
            known = ", ".join(repr(path) for path in sorted(parts) if path and path.count(".") < 2)
            raise ModelError(
                f"the device map names {part!r}, which {name!r} does not have; it has {known} and their parts"
            )
    places = {str(place) for place in getattr(network, "hf_device_map", {}).values()}
    away = sorted(places & {"disk"}) or (sorted(places & {"cpu"}) if len(places) > 1 else [])
    if away:
        raise ModelError(
            f"the device map of {name!r} leaves layers on the {away[0]}, from where they would be fetched at every "
            "step; free memory on the GPUs, name more of them, or take quantised weights or a smaller model"
        )


class DeviceLock:
    """A reusable lock: in its `with` block no other engine computes on these devices."""

    def __init__(self, devices: Iterable[torch.device]):
        # In one order, so that no two engines wait for each other.
        self._locks = [_locks.setdefault(device, threading.Lock()) for device in sorted(set(devices), key=str)]

    def __enter__(self) -> None:
        for lock in self._locks:
            lock.acquire()

    def __exit__(self, *_: object) -> None:
        for lock in self._locks:
            lock.release()
