"""Tensors in Ray's object store: immutable, by reference, without a copy between processes of one node.

This is the only means of transport so far. Another one, such as Ray Direct Transport between GPUs, needs the same two
functions.
"""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import ray
import torch
from torch import Tensor

__all__ = ["Chunk", "StoredTensors", "fetch_tensors", "store_tensors"]

# Of each stack of tensors its bytes, (tensors, ..., bytes of the last dimension), and the name of its dtype.
Packed: TypeAlias = list[tuple[npt.NDArray[np.uint8], str]]

CHUNK_BYTES = 32 << 20  # every object costs several calls between Ray's processes, so caches go in few
STACK_BYTES = 1 << 20  # Ray copies larger arrays with six threads, which is slow where cores are few or busy
ALIGNED = 64  # bytes

_packing = threading.Lock()
_buffer = torch.empty(0, dtype=torch.uint8)  # used again, since the first touch of new memory takes longer than a copy


class Chunk(NamedTuple):
    """An object of Ray's store, and its bytes."""

    ref: "ray.ObjectRef[Packed]"
    nbytes: int


class StoredTensors(NamedTuple):
    """Where tensors are: of all that these chunks hold, in order, `number` from `first` on."""

    chunks: tuple[Chunk, ...] = ()
    first: int = 0
    number: int = 0


def store_tensors(groups: Sequence[Sequence[Tensor]]) -> list[StoredTensors]:
    """Copy groups of tensors of any device and shape to the object store, together, in chunks of up to 32 MB."""
    planned = list(_chunks([tensor.detach() for group in groups for tensor in group]))
    with _packing:
        chunks = [_put(stacks) for stacks in planned]
    starts = list(accumulate((sum(map(len, stacks)) for stacks in planned), initial=0))
    found, first = [], 0
    for group in groups:
        end = first + len(group)
        held = [i for i in range(len(chunks)) if starts[i] < end and starts[i + 1] > first]
        skipped = first - starts[held[0]] if held else 0
        found.append(StoredTensors(tuple(chunks[i] for i in held), skipped, len(group)))
        first = end
    return found


async def fetch_tensors(places: Sequence[StoredTensors]) -> list[list[Tensor]]:
    """The tensors on the CPU, in the shapes that were stored. Never write to them: processes share their memory.

    Raises an error of `ray.exceptions` if a chunk is lost.
    """
    refs = list(dict.fromkeys(chunk.ref for place in places for chunk in place.chunks))
    held = {ref: _unpacked(packed) for ref, packed in zip(refs, await asyncio.gather(*refs), strict=True)}
    found = []
    for place in places:
        tensors = chain.from_iterable(held[chunk.ref] for chunk in place.chunks)
        found.append(list(tensors)[place.first : place.first + place.number])
    return found


def _unpacked(packed: Packed) -> list[Tensor]:
    return [tensor for raw, dtype in packed for tensor in torch.from_numpy(raw).view(getattr(torch, dtype)).unbind()]


def _chunks(tensors: Sequence[Tensor]) -> Iterator[list[list[Tensor]]]:
    """Stacks of tensors, as many as fill a chunk."""
    chunk: list[list[Tensor]] = []
    size = 0
    for stack in _stacks(tensors):
        more = _nbytes(stack)
        if chunk and size + more > CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
        chunk.append(stack)
        size += more
    if chunk:
        yield chunk


def _stacks(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Consecutive tensors of one shape, dtype and device, as many as fill a stack."""
    stack: list[Tensor] = []
    for tensor in tensors:
        if stack and (_kind(tensor) != _kind(stack[0]) or (len(stack) + 1) * tensor.nbytes > STACK_BYTES):
            yield stack
            stack = []
        stack.append(tensor)
    if stack:
        yield stack


def _kind(tensor: Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return tensor.shape, tensor.dtype, tensor.device


def _nbytes(stack: Sequence[Tensor]) -> int:
    """In the buffer, where the next stack begins at a multiple of ALIGNED."""
    return -(-sum(tensor.nbytes for tensor in stack) // ALIGNED) * ALIGNED


def _put(stacks: Sequence[Sequence[Tensor]]) -> Chunk:
    """Copy stacks to the buffer, and from there to the store. Ray takes an array without a copy of its own."""
    global _buffer
    sizes = [_nbytes(stack) for stack in stacks]
    if sum(sizes) > len(_buffer):
        _buffer = torch.empty(max(sum(sizes), CHUNK_BYTES), dtype=torch.uint8)
    rooms = torch.split(_buffer[: sum(sizes)], sizes)
    return Chunk(ray.put([_packed(stack, room) for stack, room in zip(stacks, rooms, strict=True)]), sum(sizes))


def _packed(stack: Sequence[Tensor], room: Tensor) -> tuple[npt.NDArray[np.uint8], str]:
    first = stack[0]
    target = room[: first.nbytes * len(stack)].view(first.dtype).view(len(stack), *first.shape)
    if first.is_cpu:
        torch.stack(list(stack), out=target)
    else:
        target.copy_(torch.stack(list(stack)))
    return target.view(torch.uint8).numpy(), str(first.dtype).removeprefix("torch.")
