"""Lets a 16-bit model compute in float32 for a while, without a second copy of its weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["in_float32"]

_HALF = (torch.bfloat16, torch.float16)


@contextmanager
def in_float32(network: nn.Module) -> Iterator[None]:
    """Within the block, a 16-bit model computes in float32: activations and KV, too.

    Matrices are widened while their module runs, one module at a time; vectors all at once. The output head, which is
    the largest matrix of most models and runs in every pass, stays widened for the next pass. Quantised weights and
    what their layers compute in stay as they are.
    """
    narrow: dict[nn.Parameter, tuple[nn.Module, Tensor]] = {}  # the module that widened it, and the narrow data
    head = _head_of(network)
    wide_head: list[Tensor] = []

    def widen(module: nn.Module, inputs: tuple[Any, ...]) -> Any:
        if type(module) is nn.Embedding:  # large; its output is widened instead, which is exact
            return None
        widened = [weight for weight in _weights_of(module) if _is_narrow(weight)]
        for weight in widened:
            narrow[weight] = module, weight.data
            weight.data = wide_head[0] if weight is head and wide_head else weight.data.float()
            if weight is head and not wide_head:
                wide_head.append(weight.data)
        if not widened:
            return None
        # Some models cast the inputs of a module to the dtype that its weights had before they were widened.
        return tuple(
            argument.float() if isinstance(argument, Tensor) and argument.dtype in _HALF else argument
            for argument in inputs
        )

    def restore(module: nn.Module, _: Any, out: Any) -> Any:
        for weight in _weights_of(module):
            if weight in narrow and narrow[weight][0] is module:
                weight.data = narrow.pop(weight)[1]
        return out.float() if type(module) is nn.Embedding and out is not None else out

    # Some modules read the dtype of a norm to choose that of its inputs.
    vectors = [(weight, weight.data) for weight in network.parameters() if weight.ndim < 2 and _is_narrow(weight)]
    for weight, data in vectors:
        weight.data = data.float()
    hooks = []
    for module in network.modules():
        if next(_weights_of(module), None) is not None:
            hooks += [
                module.register_forward_pre_hook(widen),
                module.register_forward_hook(restore, always_call=True),
            ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for weight, data in vectors:
            weight.data = data


def _head_of(network: nn.Module) -> nn.Parameter | None:
    """The matrix of the output head; a tied embedding has the same one."""
    find = getattr(network, "get_output_embeddings", None)
    return getattr(find() if find else None, "weight", None)


def _is_narrow(weight: nn.Parameter) -> bool:
    return type(weight.data) is Tensor and weight.dtype in _HALF


def _weights_of(module: nn.Module) -> Iterator[nn.Parameter]:
    """The weights that a module itself uses. Recurrent modules use those of their parts directly: a convolution's."""
    yield from module.parameters(recurse=False)
    parts = list(module.children())
    if any(isinstance(part, nn.Conv1d) for part in parts):
        for part in parts:
            yield from part.parameters(recurse=False)
