"""What a model must show before its caches are trusted: a few tokens read in several ways give the same numbers.

Checks compute in float32 whatever the model's dtype. In 16 bits two correct ways differ by so much (values of SmolLM2
in bfloat16 by a cosine of 0.8 to 0.9 at other positions) that a wrong one could hide behind it.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from .attention import NAME, Expands
from .cpu.build import Kernels, kernels, switched_off
from .cpu.decoder import Decoder, Unsupported
from .devices import home_of, is_spread
from .forward import Row, forward
from .info import ModelInfo
from .kv import KV, LayerKV, RowCache
from .quiet import quiet_transformers
from .rope import Rotation

if TYPE_CHECKING:
    from .gpu.stepper import Stepper

__all__ = ["Checked", "check", "in_float32"]

_PROBE = 8  # tokens
_FAR = 61  # positions
_ALIKE = 0.999  # cosine; wide, since weights may stay in 16 bits or fewer (`in_float32`)
_ALIKE_IN_BYTES = 0.98  # where activations are rounded to eight bits
_HALF = (torch.bfloat16, torch.float16)
_KERNELS_PAY = 2**24  # parameters; a smaller model's step is over before a kernel could help


class Checked(NamedTuple):
    """What a model may be trusted with."""

    info: ModelInfo  # with the shapes of what it was seen to cache
    why_no_cache: str | None  # why its KV cache can't travel
    rotation: Rotation
    decoder: "Decoder | Stepper | None"  # the kernels, if there are any and they compute what the model does


def check(network: Any, info: ModelInfo) -> Checked:
    """Switch the model to row-wise attention and find out what it may be trusted with; or leave it as it is."""
    with torch.inference_mode(), in_float32(network):
        found = None if info.why_no_cache else _read_packed(network, info)
        if found is None:
            own_way = f"{info.model_type!r} models compute attention in a way of their own"
            return Checked(info, info.why_no_cache or own_way, Rotation(network, info), None)
        read, info = found
        rotation = Rotation(network, info)
        if rotation.why_not is None:
            rotation.compare(read, _probe(network, info, _far(info))[0])
        return Checked(info, None, rotation, _decoder(network, info, read))


def _read_packed(network: Any, info: ModelInfo) -> tuple[KV, ModelInfo] | None:
    """What the model makes of a few tokens row by row, and its shapes; None where by itself it makes something else."""
    own = network.config._attn_implementation
    tokens = torch.tensor([_probe_ids(info)], device=home_of(network))
    expected = network(input_ids=tokens, use_cache=False, logits_to_keep=1).logits[0, -1]  # (vocab,)
    _set_attention(network, NAME)
    for expands in (False, True):
        try:
            kv, got = _probe(network, tried := replace(info, expands=expands))
            if _alike(got, expected):
                if expands and _has_rope_in_values(network, tried, kv):
                    kv = KV(tuple(LayerKV(second, first) for first, second in kv.layers), kv.positions)
                    tried = replace(tried, reversed=True)
                return kv, tried.measured(kv.layers)
        except torch.OutOfMemoryError:  # says nothing of the model
            raise
        except (Expands, LookupError, TypeError, ValueError, RuntimeError, AttributeError, AssertionError):
            pass  # as below
    _set_attention(network, own)
    return None


def _has_rope_in_values(network: Any, info: ModelInfo, here: KV) -> bool:
    """Whether of the two things that the model caches the second depends on the position, and the first does not."""
    there, _ = _probe(network, info, _far(info))
    first, second = zip(here.layers[0], there.layers[0], strict=True)
    return _alike(*first) and not _alike(*second)


def _far(info: ModelInfo) -> int:
    return max(min(_FAR, info.max_positions - _PROBE), 0)


def _decoder(network: Any, info: ModelInfo, read: KV) -> "Decoder | Stepper | None":
    if home_of(network).type == "cuda" and not is_spread(network):
        return _stepper(network, info, read)
    plain = home_of(network).type == "cpu" and network.dtype in (torch.bfloat16, torch.float32)
    if not plain or network.num_parameters() < _KERNELS_PAY or not isinstance(found := kernels(), Kernels):
        return None
    try:
        decoder = Decoder(network, info, found)
    except Unsupported:
        return None
    (expected,) = forward(network, info, [Row([1], RowCache([read]))])
    assert expected is not None
    for many in {False, decoder.reads_prompts}:
        least = _ALIKE_IN_BYTES if decoder.rounds_activations else _ALIKE
        if not _alike(decoder.read([[1]], [RowCache([read])], [[0]], many=many)[0], expected[0], least):
            return None
    return decoder


def _stepper(network: Any, info: ModelInfo, read: KV) -> "Stepper | None":
    if switched_off():
        return None
    try:
        from .gpu.stepper import Stepper  # needs Triton, which comes with torch where there are GPUs

        (expected,) = forward(network, info, [Row([1], RowCache([read]))])
        assert expected is not None
        if not _alike(Stepper(network, info).read([[1]], [RowCache([read])], [[0]])[0], expected[0]):
            raise Unsupported("the kernels compute something else")
    except Exception as error:  # a boundary: whatever a compiler or a driver says, torch decodes without it
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        logging.getLogger("cachegraph").warning("torch alone decodes %s: %s", info.model_type, reason)
        return None
    stepper = Stepper(network, info)  # anew, since the first has seen float32
    stepper.replays = True
    return stepper


@contextmanager
def in_float32(network: nn.Module) -> Iterator[None]:
    """While this is open, 16-bit weights are widened as they are used, one module at a time.

    Activations and KV follow. Quantised weights stay as they are, and what their layers compute in.
    """
    narrow: dict[nn.Parameter, Tensor] = {}

    def widen(module: nn.Module, *_: Any) -> None:
        if type(module) is nn.Embedding:  # large, and exact as it is
            return
        for weight in module.parameters(recurse=False):
            if type(weight.data) is Tensor and weight.dtype in _HALF:
                narrow[weight] = weight.data
                weight.data = weight.data.float()

    def restore(module: nn.Module, _: Any, out: Any) -> Any:
        for weight in module.parameters(recurse=False):
            if (data := narrow.pop(weight, None)) is not None:
                weight.data = data
        return out.float() if type(module) is nn.Embedding and out is not None else out

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


def _alike(a: Tensor, b: Tensor, least: float = _ALIKE) -> bool:
    return cosine_similarity(a.float().flatten(), b.float().flatten(), dim=0).item() > least


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
