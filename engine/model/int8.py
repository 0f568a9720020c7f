"""Linear layers with eight-bit weights and one scale an output: half the bytes of bfloat16, or a quarter of float32.

Integers are exact in every dtype that a model computes in, so a layer's outputs are exactly those of the rounded
weights. Activations and the KV cache keep their dtype. The CPU kernels read the integers themselves, and round a
bfloat16 model's activations to eight bits where the CPU multiplies those.
"""

from typing import Any

import torch
from torch import Tensor, nn

from cachegraph.errors import ModelError

from ..kernels import backend

__all__ = ["Int8Linear", "pieces", "quantise"]

_LARGEST = 127
_AT_ONCE = 2**23  # weights that are widened at a time
_UNIT = 2.0**-7  # integers are multiplied as parts of 1: sums with whole ones overflow float16


class Int8Linear(nn.Linear):
    """A linear layer with `weight` int8 (outputs, inputs) and `scale` float32 (outputs,), the worth of an integer's 1.

    Made of a `nn.Linear` by changing its class. A gradient flows to its input alone.
    """

    scale: Tensor
    in_float32: bool  # the CPU multiplies that faster than bfloat16

    def forward(self, input: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs), in the input's dtype."""
        computes = torch.float32 if self.in_float32 and input.device.type == "cpu" else input.dtype
        flat = input.reshape(-1, self.in_features).to(computes)  # (rows, inputs)
        out: Tensor = _Product.apply(flat, self.weight, self.scale)  # type: ignore[no-untyped-call]  # (rows, outputs)
        out = out if self.bias is None else out + self.bias
        return out.to(input.dtype).reshape(*input.shape[:-1], self.out_features)


class _Product(torch.autograd.Function):
    """x (scale * weight)' with a gradient for x alone. Weights are widened a piece at a time, never all at once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight, scale)
        out = x.new_empty(len(x), len(weight))
        for piece in pieces(weight):
            out[:, piece] = (x @ _widened(weight[piece], x.dtype).T) * (scale[piece] / _UNIT)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        weight, scale = ctx.saved_tensors
        (grad,) = grads
        total = grad.new_zeros(len(grad), weight.shape[1], dtype=torch.float32)  # (rows, inputs)
        for piece in pieces(weight):
            total += (grad[:, piece] * (scale[piece] / _UNIT)).to(grad.dtype) @ _widened(weight[piece], grad.dtype)
        return total.to(grad.dtype), None, None


def pieces(weight: Tensor) -> list[slice]:
    """Slices of a weight's outputs, (outputs, inputs), each as many as are widened at a time."""
    rows = max(1, _AT_ONCE // weight.shape[1])
    return [slice(begin, begin + rows) for begin in range(0, len(weight), rows)]


def _widened(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.to(dtype).mul_(_UNIT)


@torch.no_grad()
def quantise(network: nn.Module, name: str) -> None:
    """Round the weights of every linear layer; an embedding that shares its weights with the output head keeps its own.

    Raises ModelError for a model that was quantised before, or that has no linear layers.
    """
    if getattr(network, "is_quantized", False):
        raise ModelError(f"{name!r} has quantised weights already; leave `weights` out of its recipe")
    linears: list[Any] = [module for module in network.modules() if _is_plain(module)]
    if not linears:
        raise ModelError(f"{name!r} has no linear layers to be rounded to int8; leave `weights` out of its recipe")
    wide = backend("cpu").float32_is_faster()
    for module in linears:
        weight = module.weight
        scale = weight.abs().amax(dim=1).float().clamp_(min=1e-30).div_(_LARGEST)  # (outputs,)
        rounded = torch.empty_like(weight, dtype=torch.int8)
        for piece in pieces(weight):
            rounded[piece] = (weight[piece].float() / scale[piece, None]).round_()
        module.__class__ = Int8Linear
        module.weight = nn.Parameter(rounded, requires_grad=False)
        module.register_buffer("scale", scale)
        module.in_float32 = wide and module.weight.device.type == "cpu"


def _is_plain(module: nn.Module) -> bool:
    return type(module) is nn.Linear and type(module.weight) is nn.Parameter and module.weight.is_floating_point()
