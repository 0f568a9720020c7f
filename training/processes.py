"""Processes of one training, on one machine or several: errors that end all, and values that the main one decides."""

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn

from cachegraph.errors import CachegraphError, ConfigError

from . import checkpoint

__all__ = ["all_or_none", "average", "broadcast_weights", "from_main", "join_processes", "same_in_all"]

T = TypeVar("T")


def join_processes() -> Accelerator:
    """Connect to the other processes of this launch, if there are any. Raises ConfigError if that fails."""
    try:
        return Accelerator()
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"this process can't join the others of the training ({_first_line(error)}); check that all machines run "
            "the same launch command, and the main one's address and port"
        ) from error


def all_or_none(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """Do `work` in each process. If it fails in one of them, all raise: that one its error, the others ConfigError."""
    if accelerator.num_processes == 1:
        return work()
    try:
        value = work()
    except CachegraphError as error:
        _gather(accelerator, str(error))
        raise
    for rank, failure in enumerate(_gather(accelerator, None)):
        if failure is not None:
            raise ConfigError(f"process {rank} of the training can't start: {failure}")
    return value


def same_in_all(accelerator: Accelerator, value: str, what: str) -> None:
    """Raise ConfigError in all processes unless `value` is the same in all; `what` names it."""
    if accelerator.num_processes == 1:
        return
    found = _gather(accelerator, (value, platform.node()))
    for rank, (other, host) in enumerate(found):
        if other != found[0][0]:
            raise ConfigError(
                f"process {rank} on {host!r} has other {what} than process 0 on {found[0][1]!r}; copy the same files "
                "to all machines"
            )


def from_main(accelerator: Accelerator, value: T) -> T:
    """The main process's value, in all processes."""
    if accelerator.num_processes == 1:
        return value
    values = [value]
    with _connected():
        broadcast_object_list(values)
    return values[0]


def broadcast_weights(accelerator: Accelerator, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Give all processes the main one's weights and optimizer state."""
    if accelerator.num_processes == 1:
        return
    tensors = from_main(accelerator, checkpoint.tensors_of(module, optimizer) if accelerator.is_main_process else None)
    if not accelerator.is_main_process and tensors is not None:
        checkpoint.load(module, optimizer, *tensors)


def average(accelerator: Accelerator, gradient: Tensor) -> None:
    """Replace a gradient, of any shape, by its mean over all processes. Raises ConfigError if one of them is gone."""
    with _connected():
        gradient.copy_(accelerator.reduce(gradient, "mean"))


def _gather(accelerator: Accelerator, value: T) -> list[T]:
    """Every process's value, in the order of processes."""
    with _connected():
        found: list[T] = gather_object([value])
    assert len(found) == accelerator.num_processes
    return found


@contextmanager
def _connected() -> Iterator[None]:
    """Raise ConfigError where torch reports that another process is gone."""
    try:
        yield
    except RuntimeError as error:
        raise ConfigError(
            f"another process of the training has ended or can't be reached ({_first_line(error)}); its own output "
            "says why; then start all of them again, with --resume if a checkpoint was written"
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
