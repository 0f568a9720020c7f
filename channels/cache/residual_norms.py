"""Norms of a fuser's corrections relative to the keys and values they correct, by layer."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..fusers.networks.base import Fuser, Residual

__all__ = ["ResidualNorms"]


class ResidualNorms:
    """The norms of one source's corrections, accumulated over the stretches of a prompt."""

    def __init__(self) -> None:
        self._squares: dict[int, Tensor] = {}  # by receiver layer, (keys and values, added and original)

    @torch.no_grad()
    def add(self, layers: Sequence[int], residual: Residual, k: Tensor, v: Tensor) -> None:
        """Accumulate the corrections of some layers. `k` and `v` are (layers, batch, kv_heads, positions, head_dim)."""
        squares = [_squares(x, k) for pair in ((residual.k, k), (residual.v, v)) for x in pair]  # each (layers,)
        self.add_squares(layers, torch.stack(squares, dim=1).view(-1, 2, 2))

    def add_squares(self, layers: Sequence[int], squares: Tensor) -> None:
        """Accumulate sums of squares, (layers, 2, 2): keys and values, each added and original."""
        for layer, added in zip(layers, squares, strict=True):
            self._squares[layer] = self._squares[layer] + added if layer in self._squares else added

    def by_layer(self, fuser: Fuser) -> dict[int, tuple[float | None, float | None]]:
        """By receiver layer, the L2 norm of the correction over that of the original, for keys and for values.

        None where the gate is closed; empty if nothing was corrected.
        """
        if not self._squares:
            return {}
        device = next(iter(self._squares.values())).device
        added, original = torch.stack([squares.to(device) for squares in self._squares.values()]).unbind(-1)
        ratios = dict(zip(self._squares, (added / original.clamp_min(1e-30)).sqrt().tolist(), strict=True))
        norms: dict[int, tuple[float | None, float | None]] = {}
        for layer, gates in fuser.gates.items():
            key, value = ratios.get(layer, (0.0, 0.0))
            norms[layer] = (key if gates.key else None, value if gates.value else None)
        return norms


def _squares(x: Tensor | None, like: Tensor) -> Tensor:
    """Sums of squares by layer, (layers,)."""
    return like.new_zeros(len(like), dtype=torch.float32) if x is None else x.float().flatten(1).square().sum(dim=1)
