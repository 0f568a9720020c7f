"""The projector of Cache-to-Cache (Fu et al., arXiv 2510.03215), numerically equal to its authors' code.

Keys and values have separate branches of the same shape. The sharer's and receiver's vectors at a position, heads
flattened, are concatenated and embedded; one branch computes the correction, the other its weight per head. A learned
gate per layer switches the correction on or off:

    receiver + gate * sigmoid(weight) * correction

The parameter names are those of the published state dicts.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from cachegraph.engine.kv.shapes import KVShape
from cachegraph.engine.spec import Strict

from .base import Gates, Projector, Residual
from .gumbel_gate import Noise, annealed, soft_gate

__all__ = ["C2CParams", "C2CProjector"]

Width = Annotated[int, Field(gt=0, le=1 << 20)]
Side = Literal["key", "value"]


class C2CParams(Strict):
    """Sizes that the models do not determine, and the training schedule of the gates."""

    hidden_dim: Width = 1024
    intermediate_dim: Width = 1024
    num_layers: Annotated[int, Field(ge=3, le=64)] = 3
    dropout: Annotated[NonNegativeFloat, Field(lt=1)] = 0.1
    initial_temperature: PositiveFloat = 1.0
    final_temperature: PositiveFloat = 0.001
    anneal_steps: PositiveInt = 1929


class _Block(nn.Module):
    def __init__(self, width: int, inner: int, dropout: float):
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.w1 = nn.Linear(width, inner, bias=False)
        self.w2 = nn.Linear(inner, width, bias=False)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.w2(nn.functional.gelu(self.w1(self.norm(x)))))  # type: ignore[no-any-return]


class _Blocks(nn.Module):
    def __init__(self, width: int, inner: int, count: int, dropout: float):
        super().__init__()
        self.blocks = nn.Sequential(*(_Block(width, inner, dropout) for _ in range(count)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)  # type: ignore[no-any-return]


class C2CProjector(Projector):
    """Gates are hard at inference (logit > 0) and Gumbel-sigmoid samples while training."""

    gate_temperature: Tensor

    def __init__(self, params: C2CParams, receiver: KVShape, sharer: KVShape):
        super().__init__()
        self.params = params
        self.noise: Noise | None = None  # replaces torch.rand; called for the key gate first, then for the value gate
        self.key_gate_logit = nn.Parameter(torch.zeros(()))
        self.value_gate_logit = nn.Parameter(torch.zeros(()))
        self.register_buffer("gate_temperature", torch.tensor(params.initial_temperature))
        hidden, inner, drop = params.hidden_dim, params.intermediate_dim, params.dropout
        widths = {"key": (sharer.key_width, receiver.key_width), "value": (sharer.value_width, receiver.value_width)}
        for side, (sharer_width, receiver_width) in widths.items():
            self.add_module(f"{side}_in", nn.Linear(sharer_width + receiver_width, hidden))
            self.add_module(f"{side}_mlp1", _Blocks(hidden, inner, 1, drop))
            self.add_module(f"{side}_scalar_mlp2", _Blocks(hidden, hidden, 1, drop))
            self.add_module(f"{side}_scalar_head", nn.Linear(hidden, receiver.kv_heads))
            self.add_module(f"{side}_proj_mlp2", _Blocks(hidden, inner, params.num_layers - 2, drop))
            self.add_module(f"{side}_proj_out", nn.Linear(hidden, receiver_width))

    @property
    def gates(self) -> Gates:
        if self.training:
            return Gates(True, True)
        return Gates(bool(self.key_gate_logit > 0), bool(self.value_gate_logit > 0))

    def residual(self, sharer_k: Tensor, sharer_v: Tensor, receiver_k: Tensor, receiver_v: Tensor) -> Residual:
        """Compute the gated corrections; all tensors are (batch, kv_heads, positions, head_dim)."""
        gates = self.gates
        return Residual(
            self._correct("key", sharer_k, receiver_k) if gates.key else None,
            self._correct("value", sharer_v, receiver_v) if gates.value else None,
        )

    def anneal(self, step: int) -> None:
        """Sharpen the soft gates during training, from the initial to the final temperature."""
        p = self.params
        temperature = annealed(step, p.anneal_steps, p.initial_temperature, p.final_temperature)
        self.gate_temperature.fill_(temperature)

    def _correct(self, side: Side, sharer: Tensor, receiver: Tensor) -> Tensor:
        batch, heads, positions, head_dim = receiver.shape
        layer = self.get_submodule
        hidden = layer(f"{side}_mlp1")(layer(f"{side}_in")(torch.cat([_flat(sharer), _flat(receiver)], dim=-1)))
        correction = layer(f"{side}_proj_out")(layer(f"{side}_proj_mlp2")(hidden))
        weight = layer(f"{side}_scalar_head")(layer(f"{side}_scalar_mlp2")(hidden)).sigmoid()
        by_head = correction.view(batch, positions, heads, head_dim).transpose(1, 2)
        weight = _wide(weight.transpose(1, 2).unsqueeze(-1))
        if self.training:
            weight = self._soft_gate(side, (batch, heads, positions, 1)) * weight
        residual: Tensor = weight * by_head
        return residual

    def _soft_gate(self, side: Side, shape: tuple[int, ...]) -> Tensor:
        logit = self.key_gate_logit if side == "key" else self.value_gate_logit
        return soft_gate(logit, self.gate_temperature, shape, self.noise)


def _flat(x: Tensor) -> Tensor:
    """(batch, heads, positions, head_dim) to (batch, positions, heads * head_dim)."""
    return x.transpose(1, 2).flatten(2)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
