"""The order in which kernels read bfloat16 numbers."""

from torch import Tensor

__all__ = ["even_then_odd"]


def even_then_odd(x: Tensor, block: int) -> Tensor:
    """Reorder the last dimension of `x`, (..., size), for the kernels: of each block the even elements, then the odd.

    A vector register of bfloat16 widens into two of float32 that way without a shuffle.
    """
    pairs = x.reshape(*x.shape[:-1], -1, block // 2, 2)  # (..., blocks, pairs, 2)
    return pairs.transpose(-1, -2).reshape(x.shape)
