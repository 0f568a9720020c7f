"""Tensors in Ray's object store: immutable, by reference, without a copy between processes of one node.

This is the only means of transport so far. Another one, such as Ray Direct Transport between GPUs, needs the same two
functions.
"""

import asyncio
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import ray
import torch
from torch import Tensor

__all__ = ["Chunk", "fetch_tensors", "store_tensors"]

# A reference to some tensors: of each its bytes, (..., bytes of the last dimension), and the name of its dtype.
Chunk: TypeAlias = "ray.ObjectRef[list[tuple[npt.NDArray[np.uint8], str]]]"

CHUNK_BYTES = 8 << 20


def store_tensors(tensors: Sequence[Tensor]) -> tuple[Chunk, ...]:
    """Copy tensors of any device and shape to the object store, in order, grouped into chunks of about 8 MB."""
    chunks: list[Chunk] = []
    packed: list[tuple[npt.NDArray[np.uint8], str]] = []
    size = 0
    for tensor in tensors:
        raw = tensor.detach().cpu().contiguous()
        packed.append((raw.view(torch.uint8).numpy(), str(tensor.dtype).removeprefix("torch.")))
        size += tensor.nbytes
        if size >= CHUNK_BYTES:
            chunks.append(ray.put(packed))
            packed, size = [], 0
    if packed:
        chunks.append(ray.put(packed))
    return tuple(chunks)


async def fetch_tensors(chunks: Sequence[Chunk]) -> list[Tensor]:
    """The tensors on the CPU, in the shapes that were stored. Never write to them: processes share their memory.

    Raises an error of `ray.exceptions` if a chunk is lost.
    """
    found = await asyncio.gather(*chunks)
    return [torch.from_numpy(raw).view(getattr(torch, dtype)) for chunk in found for raw, dtype in chunk]
