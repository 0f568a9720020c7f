"""How one layer's keys are rotated by RoPE: at which frequencies, which part of a head, and which elements pair up."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

__all__ = ["PAIRINGS", "Pairing", "RotaryScheme", "is_far", "rotary_frequencies"]

Pairing = Literal["halves", "neighbours"]  # an element pairs with that of the other half, or with the one beside it
PAIRINGS: tuple[Pairing, Pairing] = ("halves", "neighbours")
_FAR = 1 << 13  # position from which float32 rounds an angle by more than 16 bits round a key
_BACKWARDS = ", backwards"
_HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class RotaryScheme:
    """Rotates the elements of a head from `begin` on, in pairs, each pair at a frequency of its own."""

    frequencies: Tensor  # (pairs,) of float32, on the CPU: radians a position
    begin: int
    pairing: Pairing

    @property
    def width(self) -> int:
        """How many elements of a head are rotated."""
        return 2 * len(self.frequencies)

    def angles(self, positions: Tensor) -> Tensor:
        """(positions, pairs), rounded as the model rounds them, on the device of `positions`."""
        return positions[:, None].float() * self.frequencies.to(positions.device)

    def tables(self, angles: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, (1, positions, width) each, in the order of a head's elements."""
        wide = torch.cat([angles, angles], -1) if self.pairing == "halves" else angles.repeat_interleave(2, -1)
        return wide.cos()[None], wide.sin()[None]

    def tables_at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines at positions, (positions,), in the shape of `tables`."""
        return self.tables(self.angles(positions))

    def tables_between(self, old: Tensor, new: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """The tables that rotate `keys` from old to new positions, (positions,) each.

        For positions far out, and for float32 keys everywhere, the difference of two angles is taken as the model has
        rounded them; otherwise the angle of the difference, which is more exact.
        """
        source, target = old.to(keys.device), new.to(keys.device)
        if keys.dtype in _HALF and not is_far(old, new):
            return self.tables(self.angles(target - source))
        return self.tables(self.angles(target) - self.angles(source))

    def rotate(self, keys: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Keys, (batch, kv_heads, positions, head_dim), rotated by tables; computed in float32."""
        rotated = keys[..., self.begin : self.begin + self.width].float()
        if self.pairing == "halves":
            first, second = rotated.chunk(2, dim=-1)
            other = torch.cat([-second, first], dim=-1)
        else:
            other = torch.stack([-rotated[..., 1::2], rotated[..., 0::2]], dim=-1).flatten(-2)
        done = (rotated * cos + other * sin).to(keys.dtype)
        if self.width == keys.shape[-1]:
            return done
        return torch.cat([keys[..., : self.begin], done, keys[..., self.begin + self.width :]], dim=-1)


def is_far(old: Tensor, new: Tensor) -> bool:
    """Whether a position of either, (positions,), is so far out that float32 rounds its angles by more than bfloat16
    rounds keys."""
    return any(len(positions) > 0 and int(positions.max()) >= _FAR for positions in (old, new))


def rotary_frequencies(decoder: Any) -> dict[str, Tensor]:
    """By name, all frequencies that a model's decoder holds, then all in the other direction.

    (pairs,) each, radians a position.
    """
    found = dict(_frequencies(decoder))
    return found | {f"{name}{_BACKWARDS}": -frequencies for name, frequencies in found.items()}


def _frequencies(decoder: Any) -> Iterator[tuple[str, Tensor]]:
    for name, buffer in decoder.named_buffers():
        if name.endswith("inv_freq"):
            found = buffer.detach().float().cpu().clone()
        elif name.endswith("embed_positions") and buffer.ndim == 2 and len(buffer) > 1:
            sines, cosines = buffer[1].detach().double().cpu().chunk(2)
            found = torch.atan2(sines, cosines).float()
        else:
            continue
        yield name, found
