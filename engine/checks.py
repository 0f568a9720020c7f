"""What a model must show before its caches are trusted: a few tokens read in several ways give the same numbers.

Checks compute in float32 whatever the model's dtype. In 16 bits two correct ways differ by so much (values of SmolLM2
in bfloat16 by a cosine of 0.8 to 0.9 at other positions) that a wrong one could hide behind it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from .attention import NAME
from .cpu.build import Kernels, kernels
from .cpu.decoder import Decoder, Unsupported
from .forward import Row, forward
from .info import ModelInfo
from .kv import KV, RowCache
from .quiet import quiet_transformers
from .rope import Rotation

__all__ = ["checked_decoder", "checked_rotation", "in_float32", "why_not_packed"]

_PROBE = 8  # tokens
_FAR = 61  # positions
_ALIKE = 0.999  # cosine; wide, since weights may stay in 16 bits or fewer (`in_float32`)
_HALF = (torch.bfloat16, torch.float16)
_KERNELS_PAY = 2**24  # parameters; a smaller model's step is over before a kernel could help
_REFUSALS = (LookupError, TypeError, ValueError, RuntimeError, AttributeError, AssertionError)


def why_not_packed(network: Any, info: ModelInfo) -> str | None:
    """Switch the model to row-wise attention, if it then still computes what it did before; or say why not."""
    own = network.config._attn_implementation
    with torch.inference_mode(), in_float32(network):
        tokens = torch.tensor([_probe_ids(info)], device=network.device)
        expected = network(input_ids=tokens, use_cache=False, logits_to_keep=1).logits[0, -1]
        _set_attention(network, NAME)
        try:
            kv, got = _probe(network, info)
            if len(kv.layers) == info.layers and _alike(got, expected):
                return None
        except _REFUSALS:
            pass  # as below
    _set_attention(network, own)
    return f"{info.model_type!r} models compute attention in a way of their own"


def checked_rotation(network: Any, info: ModelInfo, packed: bool) -> Rotation:
    """The model's RoPE, held to the model's own reading of the same tokens at two places where it reads row by row."""
    rotation = Rotation(network, info)
    if packed and rotation.why_not is None:
        places = (0, max(min(_FAR, info.max_positions - _PROBE), 0))
        with torch.inference_mode(), in_float32(network):
            rotation.compare(*(_probe(network, info, start)[0] for start in places))
    return rotation


def checked_decoder(network: Any, info: ModelInfo) -> Decoder | None:
    """The kernels for this model, if there are any and they compute what the model does."""
    plain = network.device.type == "cpu" and network.dtype in (torch.bfloat16, torch.float32)
    if not plain or network.num_parameters() < _KERNELS_PAY or not isinstance(found := kernels(), Kernels):
        return None
    try:
        decoder = Decoder(network, info, found)
    except Unsupported:
        return None
    with torch.inference_mode(), in_float32(network):
        (cache, _), (other, _) = (_probe(network, info) for _ in range(2))
        (expected,) = forward(network, info, [Row([1], RowCache([cache]))])
    assert expected is not None
    with torch.inference_mode():
        got = decoder.step([1], [RowCache([other])])[0]
    return decoder if _alike(got, expected[0]) else None


@contextmanager
def in_float32(network: nn.Module) -> Iterator[None]:
    """While this is open, 16-bit weights are widened as they are used, one module at a time.

    Activations and KV follow. Quantised weights stay as they are, and what their layers compute in.
    """
    narrow: dict[nn.Parameter, Tensor] = {}

    def widen(module: nn.Module, *_: Any) -> None:
        for weight in module.parameters(recurse=False):
            if type(weight.data) is Tensor and weight.dtype in _HALF:
                narrow[weight] = weight.data
                weight.data = weight.data.float()

    def restore(module: nn.Module, *_: Any) -> None:
        for weight in module.parameters(recurse=False):
            if (data := narrow.pop(weight, None)) is not None:
                weight.data = data

    hooks = []
    for module in network.modules():
        if next(module.parameters(recurse=False), None) is not None:
            hooks += [
                module.register_forward_pre_hook(widen),
                module.register_forward_hook(restore, always_call=True),
            ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _alike(a: Tensor, b: Tensor) -> bool:
    return cosine_similarity(a.float().flatten(), b.float().flatten(), dim=0).item() > _ALIKE


def _set_attention(network: Any, name: str) -> None:
    with quiet_transformers():
        network.set_attn_implementation(name)


def _probe_ids(info: ModelInfo) -> list[int]:
    return [1 + index % (info.vocab_size - 1) for index in range(_PROBE)]


def _probe(network: Any, info: ModelInfo, start: int = 0) -> tuple[KV, Tensor]:
    """What the packed forward pass makes of a few tokens that stand at `start`: their KV, and the last one's logits."""
    cache = RowCache()
    row = Row(_probe_ids(info), cache, positions=torch.arange(start, start + _PROBE))
    (logits,) = forward(network, info, [row])
    assert logits is not None
    return cache.tail(), logits[0]  # (vocab,)
