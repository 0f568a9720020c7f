"""A model's forward pass on a CPU: decoding for all rows at once, and prompts where torch has no AMX for them."""

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes import c_int64, c_void_p
from itertools import accumulate
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..cpu_capabilities import has_tiles
from ..kernels import Unsupported
from ..kv.cache import RowCache
from ..model.int8 import Int8Linear
from ..model.model_config import ModelInfo
from .build import Kernels
from .cache_view import CacheView
from .describe import ModelDescription
from .structs import RowStruct

__all__ = ["CPUDecoder"]

_SHORT = 16  # tokens; for longer prompts the kernels for matrices are faster
_SHORT_BESIDE_TILES = 8  # the same where AMX multiplies matrices
_ROUNDED_TO_BFLOAT16 = 0.1  # of the logits' norm
_ROUNDED_TO_BYTES = 0.2


class CPUDecoder:
    """`DecodeKernels` of one model. Raises Unsupported for a model that the kernels can't compute."""

    stops_early = True
    begin_next = None

    def __init__(self, network: Any, info: ModelInfo, kernels: Kernels):
        self.max_short_prompt = _SHORT_BESIDE_TILES if kernels.in_tiles else _SHORT
        self.reads_prompts = kernels.in_tiles or not has_tiles(torch)
        if not info.is_uniform:
            raise Unsupported("its layers differ in the shape of keys and values, share them or expand them")
        self._kernels = kernels
        self._info = info
        self._dtype: torch.dtype = network.dtype
        self._head = network.get_output_embeddings()
        self._rotary: Any = getattr(network.get_decoder(), "rotary_emb", None)
        self._has_read = False
        self._angles: list[Tensor] = []  # by kind of RoPE: (positions, 2, head_dim), cosines and sines
        self._angle_pointers: Any = None
        self._views: WeakKeyDictionary[RowCache, CacheView] = WeakKeyDictionary()
        try:
            self._described = ModelDescription(network, info, kernels)
        except (AttributeError, IndexError, TypeError) as error:  # it is built of other parts
            raise Unsupported(str(error)) from error

    @property
    def rounding_error(self) -> float:
        if self._dtype == torch.float32:
            return 0.0
        return _ROUNDED_TO_BYTES if self._rounds_to_bytes else _ROUNDED_TO_BFLOAT16

    @property
    def _rounds_to_bytes(self) -> bool:
        """Whether activations are rounded to eight bits as they meet eight-bit weights."""
        rounded = isinstance(self._head, Int8Linear)
        return self._kernels.in_bytes and rounded and self._dtype == torch.bfloat16

    def warm_up(self) -> None:
        """Nothing: the kernels are compiled."""

    def settled(self) -> "CPUDecoder":
        return self

    def step(self, ids: Sequence[int], caches: Sequence[RowCache]) -> Tensor:
        """Read one new token behind each cache, which is appended to. Returns logits, (caches, vocab), float32."""
        return self.read([[token] for token in ids], caches, [[0]] * len(ids))

    def read(
        self,
        ids: Sequence[Sequence[int]],
        caches: Sequence[RowCache],
        asked: Sequence[Sequence[int]],
        positions: Sequence[Tensor | None] | None = None,
        many: bool = False,
        layers: int | None = None,
    ) -> Tensor:
        """As `DecodeKernels.read`; logits (asked, vocab) of float32.

        A token gets the same bits whatever else is read. `many` reads by matrix products instead of weight by weight,
        which is faster for more than a few tokens; the two differ in the last bits. Raises IndexError for a token
        outside of the vocabulary.
        """
        places: list[Sequence[int]] = [
            range(start := cache.next_position, start + len(new)) if at is None else at.tolist()
            for new, cache, at in zip(ids, caches, positions or [None] * len(ids), strict=True)
        ]
        self._extend_angles(max(map(max, places)) + 1)
        if not (min(map(min, ids)) >= 0 and max(map(max, ids)) < self._described.vocabulary):
            raise IndexError(f"there is a token outside of the vocabulary of {self._described.vocabulary}")
        rows = [
            row
            for new, cache, at in zip(ids, caches, places, strict=True)
            for row in self._view(cache, layers).rows(new, cache, at)
        ]
        row_structs = (RowStruct * len(rows))(*rows)
        if self._described.weights.waits_for_packing and (self._has_read or not many or any(asked)):
            self._described.pack()
        self._has_read = True
        starts = accumulate(map(len, ids), initial=0)
        wanted = [start + index for start, some in zip(starts, asked, strict=False) for index in some]
        vocab, block = self._described.model.head.outputs, self._kernels.block
        logits = torch.empty(len(wanted), -(-vocab // block) * block)
        self._kernels.read(
            ctypes.addressof(self._described.first(layers)),
            ctypes.addressof(row_structs),
            len(rows),
            ctypes.addressof(self._angle_pointers),
            (c_int64 * len(wanted))(*wanted),
            len(wanted),
            logits.data_ptr(),
            many,
            torch.get_num_threads(),
        )
        for cache, at in zip(caches, places, strict=True):
            cache.reserve(at)
            cache.commit()
        return logits[:, :vocab]

    @contextmanager
    def with_windows(self, info: ModelInfo) -> Iterator["CPUDecoder"]:
        layers = self._described.layers
        before = [layer.window for layer in layers]
        for layer, window in zip(layers, info.windows, strict=True):
            layer.window = window or 0
        try:
            yield self
        finally:
            for layer, window in zip(layers, before, strict=True):
                layer.window = window

    def _view(self, cache: RowCache, layers: int | None) -> CacheView:
        view = self._views.get(cache)
        if view is None:
            view = self._views[cache] = CacheView(cache, self._info, self._dtype, layers or self._info.layers)
        return view

    def _extend_angles(self, positions: int) -> None:
        """Compute cosines and sines for all positions below this, and as many more."""
        if self._angles and len(self._angles[0]) >= positions:
            return
        places = torch.arange(max(256, 2 * positions))[None]
        probe, head_dim = torch.empty(1), self._info.shapes[0].key_dim
        self._angles = []
        for kind in self._described.rope_kinds:
            cos, sin = self._rotary(probe, places, *([kind] if kind is not None else []))
            if cos.shape[-1] != head_dim:
                raise Unsupported(f"{cos.shape[-1]} of {head_dim} dimensions of its heads are rotated")
            self._angles.append(torch.stack([cos[0], sin[0]], dim=1).float().contiguous())
        self._angle_pointers = (c_void_p * len(self._angles))(*(table.data_ptr() for table in self._angles))
