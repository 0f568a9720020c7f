"""Limits torch's threads for small operations on a CPU."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

__all__ = ["for_small_operations", "on_one_thread"]


@contextmanager
def on_one_thread() -> Iterator[None]:
    """torch's threads spin on after operations as short as these, on the cores that the kernels need next; and in a
    process that has several pools of them they sleep before every operation."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def for_small_operations(on: Iterable[torch.Tensor]) -> AbstractContextManager[None]:
    """One thread for operations on these tensors, of any shape, if they are on the CPU and torch has two threads.

    For some hundred thousand numbers each, at which two threads were slower than one.
    """
    if torch.get_num_threads() == 2 and all(tensor.device.type == "cpu" for tensor in on):
        return on_one_thread()
    return nullcontext()
