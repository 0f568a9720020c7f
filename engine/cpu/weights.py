"""A model's weights as the kernels read them: matrices, norm gains, biases, and packed copies of the matrices.

If free memory exceeds four times the weights, the kernels also read a packed copy of them ("panels", gemm_packed.h), in
which several rows are computed in little more time than one. The copies are made when something is decoded or a second
prompt is read. Then the pages of the plain weights go back to the file that they are mapped from.

Prompts get the same bits from copies and from plain weights, which are then packed piece by piece. Single steps don't:
with copies they add the same products in another order. The copies are made before the first step, so all steps of one
decoder are computed alike; on a machine without that much memory, or in another run, their last bits may differ.
"""

import threading
from collections.abc import Callable
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from ..kernels import Unsupported
from ..model.int8 import Int8Linear
from .build import Kernels
from .huge_pages import FilePages, LargePages
from .layout import even_then_odd
from .structs import MatrixStruct

__all__ = ["KernelWeights", "norm_epsilon"]

_ROOM = 4  # times the weights' size has to be free for a packed copy of them


class KernelWeights:
    """The weights of one network. Keeps alive all tensors that the kernels point to.

    `ordered` arguments say whether the kernels read numbers of bfloat16 models as `even_then_odd` orders them.
    """

    def __init__(self, network: Any, kernels: Kernels):
        self._kernels = kernels
        self._dtype: torch.dtype = network.dtype
        self._alive: list[Tensor] = []
        self._pages = LargePages()  # of packed copies
        self._unpacked: list[tuple[Callable[[], MatrixStruct], Tensor, bool]] = []
        self._packing = threading.Lock()  # protects _unpacked
        self.packs = (
            sum(parameter.nbytes for parameter in network.parameters()) * _ROOM < psutil.virtual_memory().available
        )

    @property
    def waits_for_packing(self) -> bool:
        return bool(self._unpacked)

    def pack(self) -> None:
        """Make the packed copies of all matrices that have none yet."""
        with self._packing:
            mapped = FilePages()
            while self._unpacked:
                struct, weight, ordered = self._unpacked.pop()
                struct().panels = self._panels(weight, ordered)
                mapped.release(weight)

    def matrix(self, linear: Any, struct: Callable[[], MatrixStruct], ordered: bool = False) -> MatrixStruct:
        """The structure of a linear layer; `struct` will give it at its final address, where `pack` completes it.

        Raises Unsupported for a layer that is neither a plain `nn.Linear` of the model's dtype nor an `Int8Linear`.
        """
        weight, rounded = linear.weight, isinstance(linear, Int8Linear)
        plain = isinstance(linear, nn.Linear) and type(weight) is nn.Parameter  # a quantised one is of another type
        if not plain or weight.dtype != (torch.int8 if rounded else self._dtype) or not weight.is_contiguous():
            raise Unsupported("a linear layer is not a plain one")
        bias = None if linear.bias is None else self._by_output(linear.bias.float(), ordered)
        # The kernels take each integer 2^24 times.
        scales = self._by_output(linear.scale * 2.0**-24, ordered) if rounded else None
        if weight.shape[1] % self._kernels.block and (rounded or self.packs):
            raise Unsupported(f"an inner dimension of {weight.shape[1]} is not a multiple of {self._kernels.block}")
        panels = self._panels(weight, ordered) if rounded else None  # int8 kernels read packed weights only
        if self.packs and not rounded:
            self._unpacked.append((struct, weight, ordered))
        return MatrixStruct(self._address(weight), bias, weight.shape[0], panels, scales)

    def embeddings(self, module: Any, hidden: int) -> tuple[int, float]:
        """The address of the embedding table, (vocab, hidden), and the factor that the model scales it by (Gemma)."""
        weight = module.weight
        if weight.dtype != self._dtype or weight.shape[1:] != (hidden,) or not weight.is_contiguous():
            raise Unsupported("its embeddings are not plain ones")
        scale = torch.tensor(float(getattr(module, "embed_scale", 1.0)), dtype=self._dtype).item()
        probe = torch.arange(0, len(weight), max(len(weight) // 16, 1))
        with torch.no_grad():
            got = module(probe).float()
        if (weight[probe].float() * scale - got).norm() > 0.02 * got.norm():
            raise Unsupported("its embeddings are not plain ones")
        return self._address(weight), scale

    def gain(self, norm: Any, ordered: bool = False) -> int:
        """The address of the gain of an RMS norm, (size,), measured: models store it as it is, or less 1."""
        weight = norm.weight.float()
        probe = torch.linspace(0.5, 1.5, len(weight))
        plain = probe / (probe.square().mean() + norm_epsilon(norm)).sqrt()
        with torch.no_grad():
            got = norm(probe.to(norm.weight.dtype)).float()
        gain = min(weight, 1 + weight, key=lambda gain: float((plain * gain - got).norm()))
        if (plain * gain - got).norm() > 0.02 * got.norm():
            raise Unsupported("a norm is not an RMS norm")
        return self._address((self._ordered(gain) if ordered else gain).contiguous())

    def _by_output(self, numbers: Tensor, ordered: bool) -> int:
        """The address of numbers, (outputs,), padded to whole blocks."""
        padded = nn.functional.pad(numbers, (0, -len(numbers) % self._kernels.block))
        return self._address((self._ordered(padded) if ordered else padded).contiguous())

    def _panels(self, weight: Tensor, ordered: bool) -> int:
        outputs, inputs = weight.shape
        padded = -(-outputs // self._kernels.block) * self._kernels.block
        panels = self._pages.empty(padded, inputs, dtype=weight.dtype)
        bf16, threads = self._dtype == torch.bfloat16, torch.get_num_threads()
        bytes_each = weight.element_size()
        self._kernels.panels(weight.data_ptr(), outputs, inputs, bytes_each, bf16, ordered, panels.data_ptr(), threads)
        return self._address(panels)

    def _ordered(self, x: Tensor) -> Tensor:
        return even_then_odd(x, self._kernels.block) if self._dtype == torch.bfloat16 else x

    def _address(self, tensor: Tensor) -> int:
        self._alive.append(tensor)
        return tensor.data_ptr()


def norm_epsilon(norm: Any) -> float:
    return float(getattr(norm, "variance_epsilon", None) or norm.eps)
