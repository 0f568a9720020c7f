"""What is minimised, from the log-probabilities of each row's replies."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .data.examples import Replies
from .spec import LossSpec

__all__ = ["Losses", "losses"]


@dataclass(frozen=True)
class Losses:
    """Means over the rows, scalars with gradients; `total` is weighted. None: not part of this loss."""

    total: Tensor
    next_token: Tensor
    choices: Tensor | None
    mismatched: Tensor | None

    def numbers(self) -> dict[str, float]:
        named = {"loss": self.total, "next_token": self.next_token}
        named |= {name: x for name in ("choices", "mismatched") if (x := getattr(self, name)) is not None}
        return {name: float(x.detach()) for name, x in named.items()}


def losses(
    spec: LossSpec, replies: Sequence[Replies], own: Sequence[Tensor], mismatched: Sequence[Tensor] | None
) -> Losses:
    """`own` has the log-probabilities of every row's replies, (replies,), with its own text's cache; `mismatched` those
    of the right reply alone, (1,), with another's.

    next_token   nats a token of the right reply (arXiv 2510.03215)
    choices      cross-entropy of the right reply among all replies; rows with one reply take no part
    mismatched   how far the right reply's log-probability fails to be `margin` nats above that with another's cache
    """
    right = torch.stack([each[reply.right] for each, reply in zip(own, replies, strict=True)])  # (rows,)
    lengths = torch.tensor([len(reply.ids[reply.right]) for reply in replies], device=right.device)
    next_token = -(right / lengths).mean()
    total = spec.next_token * next_token
    choices = contrast = None
    if spec.choices:
        terms = [
            -each.log_softmax(0)[reply.right] for each, reply in zip(own, replies, strict=True) if len(reply.ids) > 1
        ]
        if terms:
            choices = torch.stack(terms).mean()
            total = total + spec.choices * choices
    if spec.mismatched and mismatched is not None:
        contrast = (spec.margin - (right - torch.stack(list(mismatched)).squeeze(1))).relu().mean()
        total = total + spec.mismatched * contrast
    return Losses(total, next_token, choices, contrast)
