"""A learned gate: open or closed at inference, a Gumbel-sigmoid sample with falling temperature while training."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Noise", "annealed", "soft_gate"]

Noise = Callable[[tuple[int, ...]], Tensor]  # uniform numbers in [0, 1) of this shape


def soft_gate(logit: Tensor, temperature: Tensor, shape: tuple[int, ...], noise: Noise | None = None) -> Tensor:
    """Sample in (0, 1), of this shape, with a gradient to the logit; `noise` replaces torch.rand."""
    drawn = noise(shape) if noise else torch.rand(shape, device=logit.device, dtype=logit.dtype)
    gumbel = -torch.log(-torch.log(drawn + 1e-20) + 1e-20)
    return torch.sigmoid((logit + gumbel) / temperature)


def annealed(step: int, steps: int, initial: float, final: float) -> float:
    """The temperature at a step, decaying geometrically from `initial` to `final`."""
    return initial * float((final / initial) ** min(step / steps, 1.0))
