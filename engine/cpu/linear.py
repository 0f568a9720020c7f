"""Linear layers in bfloat16 on CPUs that are faster at float32.

Where a CPU has no instructions for bfloat16, torch emulates its matrix products, several times slower than float32;
and some that have them do half as many a second. These layers read the same weights, multiply and add in float32, and
round once at the end, as the instructions would. A row gets the same bits beside any others. Without compiled
kernels the weights are widened for each call, and float32 products do the rest.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..cpu_capabilities import computes_bfloat16, has_tiles
from ..model.int8 import pieces
from .build import Kernels, kernels

__all__ = ["WideLinear", "float32_is_faster", "widen_linears"]

_WORTH_IT = 2**17  # weights; below, a call costs more than it saves


class WideLinear(nn.Linear):
    """A bfloat16 linear layer that computes in float32. Made of a `nn.Linear` by changing its class."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs), in the input's dtype."""
        if input.dtype != torch.bfloat16 or self.weight.dtype != torch.bfloat16 or self.weight.device.type != "cpu":
            return super().forward(input)
        flat = input.reshape(-1, self.in_features)  # (rows, inputs)
        out: Tensor = _Product.apply(flat, self.weight)  # type: ignore[no-untyped-call]  # (rows, outputs)
        out = out if self.bias is None else out + self.bias
        return out.reshape(*input.shape[:-1], self.out_features)


class _Product(torch.autograd.Function):
    """x W' with a gradient for x alone: models stay as they are."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return _product(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        (grad,) = grads
        total = torch.zeros(grad.shape[0], weight.shape[1])  # (rows, inputs)
        for piece in pieces(weight):
            total += grad[:, piece].float() @ weight[piece].float()
        return total.to(grad.dtype), None


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """(rows, inputs), (outputs, inputs) -> (rows, outputs)."""
    out = x.new_empty(x.shape[0], weight.shape[0])
    compiled = kernels()
    if isinstance(compiled, Kernels) and weight.shape[1] % compiled.block == 0 and weight.is_contiguous():
        x = x.contiguous()
        size, threads = (*weight.shape, x.data_ptr(), x.shape[0]), torch.get_num_threads()
        compiled.linear(weight.data_ptr(), *size, out.data_ptr(), threads)
        return out
    wide = x.float()
    for piece in pieces(weight):
        out[:, piece] = wide @ weight[piece].float().T
    return out


def widen_linears(network: nn.Module) -> None:
    """Let every large bfloat16 linear layer of a network on the CPU compute in float32, if that is faster."""
    large = [module for module in network.modules() if _is_large(module)]
    if large and float32_is_faster():
        for module in large:
            module.__class__ = WideLinear


def _is_large(module: nn.Module) -> bool:
    if type(module) is not nn.Linear or type(module.weight) is not nn.Parameter:  # quantised weights are of another
        return False
    bfloat16 = module.weight.dtype == torch.bfloat16 and module.weight.device.type == "cpu"
    return bfloat16 and module.weight.numel() >= _WORTH_IT


def float32_is_faster() -> bool:
    """Whether this CPU multiplies matrices of float32 faster than of bfloat16."""
    if not computes_bfloat16(torch):
        return True
    compiled = kernels()
    return isinstance(compiled, Kernels) and not compiled.in_pairs and not has_tiles(torch)
