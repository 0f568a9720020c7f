"""The projector of Latent Cache Flow (arXiv 2605.22863): one low-rank bottleneck for keys and values of both ends.

    x = [S_K, S_V, R_K, R_V];  z = MLP(down x), split into z_K and z_V;  R_i' = R_i + gate * alpha_i * up_i(z_i)

with one gate per layer and one alpha per KV head. It expects unrotated keys, so that corrections do not depend on the
positions in either prompt. `up` starts at zero: a new fuser changes nothing.
"""

from collections.abc import Sequence
from copy import copy
from functools import cached_property
from typing import Annotated, Self

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from cachegraph.engine.kernels import LeanFuserKernel, backend
from cachegraph.engine.kv.shapes import KVShape
from cachegraph.engine.spec import Strict

from .base import Gates, Projector, Residual, Stack
from .gumbel_gate import Noise, annealed, soft_gate

__all__ = ["LeanParams", "LeanProjector"]


class LeanParams(Strict):
    """Sizes that the models do not determine (`width`: of each half of z), and the gate's training schedule."""

    width: Annotated[int, Field(gt=0, le=1 << 16)] = 128
    initial_temperature: PositiveFloat = 1.0
    final_temperature: PositiveFloat = 0.001
    anneal_steps: PositiveInt = 300


class LeanProjector(Projector):
    """The gate is hard at inference (logit > 0) and a Gumbel-sigmoid sample while training."""

    gate_temperature: Tensor

    def __init__(self, params: LeanParams, receiver: KVShape, sharer: KVShape):
        super().__init__()
        self.params = params
        self.shapes = receiver, sharer
        self.noise: Noise | None = None  # replaces torch.rand
        z = 2 * params.width
        self.gate_logit = nn.Parameter(torch.ones(()))  # training stalls from 0 (section 4 of the paper)
        self.register_buffer("gate_temperature", torch.tensor(params.initial_temperature))
        self.norm = nn.LayerNorm(sharer.width + receiver.width)
        self.down = nn.Linear(sharer.width + receiver.width, z)
        self.mix = nn.Linear(z, z)
        self.key_up = nn.Linear(params.width, receiver.key_width)
        self.value_up = nn.Linear(params.width, receiver.value_width)
        self.key_alpha = nn.Parameter(torch.ones(receiver.kv_heads))
        self.value_alpha = nn.Parameter(torch.ones(receiver.kv_heads))
        for up in (self.key_up, self.value_up):
            nn.init.zeros_(up.weight)
            nn.init.zeros_(up.bias)

    @property
    def gates(self) -> Gates:
        is_open = self.training or bool(self.gate_logit > 0)
        return Gates(is_open, is_open)

    def anneal(self, step: int) -> None:
        """Sharpen the soft gate during training, from the initial to the final temperature."""
        p = self.params
        temperature = annealed(step, p.anneal_steps, p.initial_temperature, p.final_temperature)
        self.gate_temperature.fill_(temperature)

    def residual(self, sharer_k: Tensor, sharer_v: Tensor, receiver_k: Tensor, receiver_v: Tensor) -> Residual:
        """Compute the gated corrections; all tensors are (batch, kv_heads, positions, head_dim)."""
        if not any(self.gates):
            return Residual(None, None)
        k, v = _corrections(self, sharer_k, sharer_v, receiver_k, receiver_v)
        if not self.training:
            return Residual(k, v)
        gate = soft_gate(self.gate_logit, self.gate_temperature, (k.shape[0], 1, k.shape[2], 1), self.noise)
        return Residual(gate * k, gate * v)

    @classmethod
    def stack(cls, projectors: Sequence[Projector]) -> Stack | None:
        lean = [projector for projector in projectors if isinstance(projector, LeanProjector)]
        return LeanStack(lean) if len({projector.shapes for projector in lean}) == 1 else None


class LeanStack:
    """Projectors with open gates, computed as one: the operations of one layer are too small for the hardware."""

    def __init__(self, projectors: Sequence[LeanProjector]):
        self._projectors = projectors
        one = projectors[0]
        wide = one.dtype == torch.bfloat16 and backend(one.device.type).float32_is_faster()
        self.dtype = torch.float32 if wide else one.dtype
        self.norm = _StackedNorm([projector.norm for projector in projectors], self.dtype)
        self.down, self.mix, self.key_up, self.value_up = (
            _StackedLinear([getattr(projector, name) for projector in projectors], self.dtype)
            for name in ("down", "mix", "key_up", "value_up")
        )
        # (layers, 1, kv_heads)
        self.key_alpha = torch.stack([projector.key_alpha for projector in projectors])[:, None]
        self.value_alpha = torch.stack([projector.value_alpha for projector in projectors])[:, None]

    @cached_property
    def kernel(self) -> LeanFuserKernel | None:
        weight = self._projectors[0].down.weight
        # A kernel copies the weights, so training would make it stale.
        return None if weight.requires_grad else backend(weight.device.type).lean_fuser(self._projectors)

    def part(self, begin: int, end: int) -> "LeanStack":
        some = copy(self)
        some.kernel = None
        for name in ("norm", "down", "mix", "key_up", "value_up"):
            setattr(some, name, getattr(self, name).part(begin, end))
        some.key_alpha, some.value_alpha = self.key_alpha[begin:end], self.value_alpha[begin:end]
        return some

    def __call__(
        self, sharer_k: Tensor, sharer_v: Tensor, receiver_k: Tensor, receiver_v: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Correct all layers at once: keys and values, (layers, batch, kv_heads, positions, head_dim) each."""
        return _corrections(self, sharer_k, sharer_v, receiver_k, receiver_v)


class _Stacked:
    """Stacked weights and biases, (layers, ...)."""

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype):
        self._weight, self._bias = weight.to(dtype), bias.to(dtype)

    def part(self, begin: int, end: int) -> Self:
        some = copy(self)
        some._weight, some._bias = self._weight[begin:end], self._bias[begin:end]
        return some


class _StackedLinear(_Stacked):
    def __init__(self, linears: Sequence[nn.Linear], dtype: torch.dtype):
        weight = torch.stack([linear.weight.T for linear in linears])  # (layers, inputs, outputs)
        super().__init__(weight, torch.stack([linear.bias for linear in linears])[:, None], dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """Apply to (layers, batch, positions, inputs); returns (layers, batch, positions, outputs)."""
        return torch.baddbmm(self._bias, x.flatten(1, 2), self._weight).view(*x.shape[:3], -1)


class _StackedNorm(_Stacked):
    def __init__(self, norms: Sequence[nn.LayerNorm], dtype: torch.dtype):
        self._shape, self._eps = norms[0].normalized_shape, norms[0].eps
        weight, bias = (torch.stack([getattr(norm, name) for norm in norms]) for name in ("weight", "bias"))
        super().__init__(weight[:, None, None], bias[:, None, None], dtype)  # (layers, 1, 1, features)

    def __call__(self, x: Tensor) -> Tensor:
        plain = nn.functional.layer_norm(x, self._shape, eps=self._eps)
        return torch.addcmul(self._bias, plain, self._weight)


def _corrections(
    net: LeanProjector | LeanStack, sharer_k: Tensor, sharer_v: Tensor, receiver_k: Tensor, receiver_v: Tensor
) -> tuple[Tensor, Tensor]:
    """Correct keys and values; all are (batch, kv_heads, positions, head_dim), with layers in front for a stack."""
    x = torch.cat([_flat(tensor) for tensor in (sharer_k, sharer_v, receiver_k, receiver_v)], dim=-1)
    z = nn.functional.gelu(net.down(net.norm(x)))  # (..., batch, positions, 2 * width)
    z_k, z_v = (z + net.mix(z)).chunk(2, dim=-1)
    k = _weighted(net.key_up(z_k), net.key_alpha, receiver_k)
    v = _weighted(net.value_up(z_v), net.value_alpha, receiver_v)
    return k, v


def _weighted(delta: Tensor, alpha: Tensor, receiver: Tensor) -> Tensor:
    """Split (..., positions, width) into (..., kv_heads, positions, head_dim) and scale each head by alpha, (...,
    kv_heads).
    """
    heads, head_dim = receiver.shape[-3], receiver.shape[-1]
    by_head = delta.view(*delta.shape[:-1], heads, head_dim).transpose(-3, -2)
    return _wide(alpha)[..., None, None] * _wide(by_head)


def _flat(x: Tensor) -> Tensor:
    """(..., heads, positions, head_dim) to (..., positions, heads * head_dim)."""
    return x.transpose(-3, -2).flatten(-2)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
