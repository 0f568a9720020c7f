"""Corrects a receiver's cache by a lean fuser, all its layers in one call (lean_fuser.h)."""

from collections.abc import Sequence
from ctypes import POINTER, Structure, addressof, c_float, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels import KVPair
from .build import Kernels
from .layout import even_then_odd
from .rope import contiguous_by_head
from .structs import MatrixStruct

__all__ = ["CPULeanFuser"]


class _Cached(Structure):
    _fields_ = [("at", c_void_p), ("stride", c_int64)]


class _Projector(Structure):
    _fields_ = [
        *((name, _Cached) for name in ("sharer_keys", "sharer_values", "keys", "values")),
        *((name, c_void_p) for name in ("new_keys", "new_values", "gain", "bias")),
        *((name, MatrixStruct) for name in ("down", "mix", "key_up", "value_up")),
        *((name, c_void_p) for name in ("key_alpha", "value_alpha", "rope")),
    ]


class _Lean(Structure):
    _fields_ = [
        ("projectors", POINTER(_Projector)),
        *((name, c_int64) for name in ("layers", "heads", "kv_heads", "sharer_dim", "head_dim", "width")),
        ("here", c_void_p),
        ("there", c_void_p),
        ("pairs", c_int64),
        ("positions", c_int64),
        ("eps", c_float),
        ("squares", c_void_p),
    ]


class CPULeanFuser:
    """`LeanFuserKernel` of projectors in bfloat16, all with open gates. Make it with `of`."""

    @classmethod
    def of(cls, projectors: Sequence[Any], kernels: Kernels) -> "CPULeanFuser | None":
        """None where the kernels can't compute them."""
        one = projectors[0]
        if one.down.weight.device.type != "cpu" or one.down.weight.dtype != torch.bfloat16:
            return None
        linears = [one.down, one.mix, one.key_up, one.value_up]
        sizes = {size for linear in linears for size in linear.weight.shape}
        return None if any(size % kernels.block for size in sizes) else cls(projectors, kernels)

    def __init__(self, projectors: Sequence[Any], kernels: Kernels):
        self._kernels = kernels
        self._kept: list[Tensor] = []  # what the kernels point to
        self._width: int = projectors[0].key_up.weight.shape[1]
        self._eps: float = projectors[0].norm.eps
        self._described = (_Projector * len(projectors))()
        for projector, to in zip(projectors, self._described, strict=True):
            to.gain, to.bias = (
                self._floats(even_then_odd(parameter, kernels.block)) for parameter in projector.norm.parameters()
            )
            to.key_alpha, to.value_alpha = self._floats(projector.key_alpha), self._floats(projector.value_alpha)
            for name in ("down", "mix", "key_up", "value_up"):
                setattr(to, name, self._matrix(getattr(projector, name)))

    def takes(self, receiver: Sequence[KVPair], sharer: Sequence[KVPair], rotated: bool) -> bool:
        """Whether it can correct these layers, (1, kv_heads, positions, head_dim) each.

        They must have one shape, be in bfloat16 on the CPU, and have a head_dim of whole blocks.
        """
        block = self._kernels.block
        receiver_keys, sharer_keys = receiver[0][0], sharer[0][0]
        fit = receiver_keys.shape[3] % (2 * block if rotated else block) == 0 and sharer_keys.shape[3] % block == 0
        return fit and all(
            tensor.shape == one.shape
            and tensor.shape[0] == 1
            and tensor.dtype == torch.bfloat16
            and tensor.device.type == "cpu"
            for one, layers in ((receiver_keys, receiver), (sharer_keys, sharer))
            for layer in layers
            for tensor in layer
        )

    def __call__(
        self,
        receiver: Sequence[KVPair],
        sharer: Sequence[KVPair],
        pairs: tuple[Tensor, Tensor],
        tables: Sequence[Tensor | None],
    ) -> tuple[list[KVPair], Tensor]:
        """By projector, the receiver's layer corrected at pairs of a receiver's and a sharer's position.

        `sharer`: the layer that each projector reads. `tables`: of `Angles`, at the receiver's positions; None for a
        layer whose keys it reads as they are. Also returns, (layers, 2, 2), the squares of what was added and of what
        was there, of keys and of values.
        """
        own = [(contiguous_by_head(keys), contiguous_by_head(values)) for keys, values in receiver]
        sources = [(contiguous_by_head(keys), contiguous_by_head(values)) for keys, values in sharer]
        new_keys, new_values = (_room(tensors, len(pairs[0])) for tensors in zip(*own, strict=True))
        new = list(zip(new_keys, new_values, strict=True))
        described = type(self._described).from_buffer_copy(self._described)  # others may be calling, too
        for to, layer, source, new_layer, table in zip(described, own, sources, new, tables, strict=True):
            to.keys, to.values, to.sharer_keys, to.sharer_values = map(_cached, (*layer, *source))
            to.new_keys, to.new_values = (tensor.data_ptr() for tensor in new_layer)
            to.rope = None if table is None else table.data_ptr()
        receiver_positions, sharer_positions = (positions.to(torch.int64).contiguous() for positions in pairs)
        squares = torch.empty(len(own), len(receiver_positions), 4)
        receiver_keys, sharer_keys = own[0][0], sources[0][0]
        lean = _Lean(
            described,
            len(own),
            *(sharer_keys.shape[1], receiver_keys.shape[1], sharer_keys.shape[3], receiver_keys.shape[3]),
            self._width,
            receiver_positions.data_ptr(),
            sharer_positions.data_ptr(),
            len(receiver_positions),
            receiver_keys.shape[2],
            self._eps,
            squares.data_ptr(),
        )
        self._kernels.correct(addressof(lean), torch.get_num_threads())
        return new, squares.sum(dim=1).view(-1, 2, 2)

    def _matrix(self, linear: nn.Linear) -> MatrixStruct:
        weight = linear.weight.detach().contiguous()
        panels = torch.empty_like(weight)
        outputs, inputs = weight.shape
        self._kernels.panels(
            *(weight.data_ptr(), outputs, inputs, weight.element_size(), True, True),
            *(panels.data_ptr(), torch.get_num_threads()),
        )
        self._kept += [weight, panels]
        return MatrixStruct(
            weight.data_ptr(),
            self._floats(even_then_odd(linear.bias, self._kernels.block)),
            outputs,
            panels.data_ptr(),
            None,
        )

    def _floats(self, x: Tensor) -> int:
        kept = x.detach().float().contiguous()
        self._kept.append(kept)
        return kept.data_ptr()


def _room(layers: Sequence[Tensor], pairs: int) -> tuple[Tensor, ...]:
    """For corrected layers, parts of one buffer; what no pair is for stands there already."""
    made = torch.empty(len(layers), *layers[0].shape, dtype=layers[0].dtype).unbind()
    if pairs < layers[0].shape[2]:
        for new, old in zip(made, layers, strict=True):
            new.copy_(old)
    return made


def _cached(x: Tensor) -> _Cached:
    return _Cached(x.data_ptr(), x.stride(1))
