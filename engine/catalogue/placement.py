"""Chooses a model's device and dtype by what memory is free. Values that the user names always win."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cachegraph.common.human import format_bytes, format_count
from cachegraph.errors import ConfigError, ModelError

from ..cpu_capabilities import computes_bfloat16
from ..model.weight_files import count_parameters
from ..spec import DType, ModelSpec

__all__ = ["Device", "Placement", "choose_device", "choose_dtype", "place", "visible_devices"]

BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
HEADROOM_PERCENT = 10  # activations, buffers, and a first KV cache


@dataclass(frozen=True)
class Device:
    """A device as it is now: `dtype` is the best one it computes in natively."""

    name: str
    free: int
    dtype: str


@dataclass(frozen=True)
class Placement:
    """Where one model goes. `dtype` names an attribute of torch."""

    device: str
    dtype: str
    bytes: int


def place(folder: Path, spec: ModelSpec) -> Placement:
    """Choose for the model in `folder`, from the devices of this machine as they are now.

    Where a device map spreads it, accelerate finds the devices, and only the number type is chosen here.
    """
    parameters, devices = count_parameters(folder), visible_devices()
    if spec.device_map is None:
        kept = _count_kept(folder, parameters) if any(device.name != "cpu" for device in devices) else parameters
        return choose_device(spec.device, parameters, spec.dtype, devices, kept)
    if not isinstance(spec.device_map, str):
        for named in spec.device_map.values():
            _candidates(f"cuda:{named}" if isinstance(named, int) else named, devices)
    chosen = choose_dtype(spec.dtype, devices[0])  # a GPU where there is one
    return Placement(devices[0].name, chosen, parameters * BYTES[chosen])


def choose_dtype(requested: DType, device: Device) -> str:
    """What was asked for, or else what the device computes in."""
    return device.dtype if requested == "auto" else requested


def _count_kept(folder: Path, parameters: int) -> int:
    """How many of a model's parameters are left once it is loaded: of models of pictures or sound the text part."""
    from ..model.text_model import count_text_parameters

    return min(parameters, count_text_parameters(folder) or parameters)


def choose_device(
    requested: str, parameters: int, dtype: DType, devices: Sequence[Device], kept: int | None = None
) -> Placement:
    """The GPU with most free memory if the model fits there, else the CPU; or the device asked for.

    `kept` are the parameters that move to another device than the CPU, where all are read; by default all. Raises
    ModelError with the arithmetic if it fits nowhere.
    """
    candidates = _candidates(requested, devices)
    refusals = []
    for device in candidates:
        chosen = choose_dtype(dtype, device)
        count = parameters if device.name == "cpu" or kept is None else kept
        needed = count * BYTES[chosen] * (100 + HEADROOM_PERCENT) // 100
        if needed <= device.free:
            return Placement(device.name, chosen, needed)
        refusals.append(
            f"in {chosen} it needs {format_bytes(needed)} = {format_count(count)} parameters x "
            f"{BYTES[chosen]} bytes + {HEADROOM_PERCENT} %, {device.name} has {format_bytes(device.free)} free"
        )
    raise ModelError(
        f"the model does not fit: {'; '.join(refusals)}. Free memory, or choose another device, dtype or model"
    )


def _candidates(requested: str, devices: Sequence[Device]) -> list[Device]:
    gpus = sorted((device for device in devices if device.name.startswith("cuda:")), key=lambda device: -device.free)
    if requested == "auto":
        return gpus + [device for device in devices if device.name == "cpu"]
    matches = gpus if requested == "cuda" else [device for device in devices if device.name == requested]
    if not matches:
        known = ", ".join(device.name for device in devices)
        raise ConfigError(f"there is no device {requested!r} here; this machine has: {known}. Use one, or 'auto'")
    return matches


def visible_devices() -> list[Device]:
    """What torch can compute on here: GPUs that CUDA_VISIBLE_DEVICES shows, Apple's GPU, the CPU."""
    import torch

    devices = [_cuda(torch, index) for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    if torch.backends.mps.is_available():
        free = torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
        devices.append(Device("mps", free, "float16"))
    return [*devices, _cpu(torch)]


def _cuda(torch: Any, index: int) -> Device:
    free, _ = torch.cuda.mem_get_info(index)
    with torch.cuda.device(index):
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    return Device(f"cuda:{index}", free, "bfloat16" if native else "float16")


def _cpu(torch: Any) -> Device:
    import psutil

    return Device("cpu", psutil.virtual_memory().available, "bfloat16" if computes_bfloat16(torch) else "float32")
