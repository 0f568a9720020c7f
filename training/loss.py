"""Training losses, computed from the log-probabilities of each example's replies."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .data.examples import Replies
from .spec import LossSpec

__all__ = ["Losses", "losses"]


@dataclass(frozen=True)
class Losses:
    """Means over the examples: scalar tensors with gradients. `total` is the weighted sum; None: a term not used."""

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
    """The losses of a batch of examples.

    `own` has for each example (replies,) log-probabilities in nats, with its own text's cache; `mismatched` has (1,),
    that of the right reply, with another text's cache.

    next_token   negative log-likelihood per token of the right reply, in nats (arXiv 2510.03215)
    choices      cross-entropy of the right reply among all replies at `temperature`, over examples with more than one
    mismatched   hinge loss: the right reply should be `margin` nats likelier than with another text's cache
    """
    right = torch.stack([logprobs[reply.right] for logprobs, reply in zip(own, replies, strict=True)])  # (examples,)
    lengths = torch.tensor([len(reply.ids[reply.right]) for reply in replies], device=right.device)
    next_token = -(right / lengths).mean()
    total = spec.next_token * next_token
    choices = contrast = None
    if spec.choices:
        terms = [
            -(logprobs / spec.temperature).log_softmax(0)[reply.right]
            for logprobs, reply in zip(own, replies, strict=True)
            if len(reply.ids) > 1
        ]
        if terms:
            choices = torch.stack(terms).mean()
            total = total + spec.choices * choices
    if spec.mismatched and mismatched is not None:
        contrast = (spec.margin - (right - torch.stack(list(mismatched)).squeeze(1))).relu().mean()
        total = total + spec.mismatched * contrast
    return Losses(total, next_token, choices, contrast)
