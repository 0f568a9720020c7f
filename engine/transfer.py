"""Copies of small tensors between host and device that do not stall the GPU."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["to_device", "to_host"]


def to_device(numbers: object, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Copy (nested) numbers into a tensor of the same shape on a device, without waiting for what a GPU computes."""
    host = torch.tensor(numbers, dtype=dtype, pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)


def to_host(tensor: Tensor) -> Callable[[], list[int]]:
    """Start copying a tensor, (n,) of integers; the function returned waits for the copy and gives its numbers.

    Work that is given to a GPU in between is not waited for.
    """
    if not tensor.is_cuda:
        return tensor.tolist
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    arrived = torch.cuda.current_stream(tensor.device).record_event()

    def numbers() -> list[int]:
        arrived.synchronize()
        values: list[int] = host.tolist()
        return values

    return numbers
