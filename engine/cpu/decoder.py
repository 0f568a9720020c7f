"""A transformers model as the kernels see it: where its weights lie, how it norms, rotates and gates.

Nothing is believed of a model's class: a `Decoder` is used only after a step of it gave what the model itself gives.
"""

import ctypes
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ctypes import POINTER, Structure, c_float, c_int64, c_void_p
from functools import partial
from itertools import accumulate
from typing import Any, cast
from weakref import WeakKeyDictionary

import numpy as np
import psutil
import torch
from torch import Tensor, nn

from ..cpu_capabilities import has_tiles
from ..kv.cache import LayerKV, RowCache
from ..model.int8 import Int8Linear
from ..model.model_config import ModelInfo
from .build import Kernels
from .huge_pages import FilePages, LargePages

__all__ = ["Decoder", "Matrix", "Unsupported", "placed"]

_SHORT = 16  # tokens; for a longer prompt products of matrices pay
_SHORT_BESIDE_TILES = 8  # the same where AMX computes them

_ROOM = 4  # times as much memory as a model's weights take has to be free for a second order of them
_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
_ROPE = {"default", "linear", "llama3", "yarn"}  # cosines and sines depend on the position alone


class Unsupported(Exception):
    """Raised by `Decoder` for a model that the kernels can't compute; the message says what is odd about it."""


class Matrix(Structure):
    """As gemv.h has it."""

    _fields_ = [
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("outputs", c_int64),
        ("panels", c_void_p),
        ("scales", c_void_p),
    ]


class _Layer(Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("norm_in", "norm_attention", "norm_mlp", "norm_out", "q_norm", "k_norm")),
        *((name, Matrix) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        ("rope", c_int64),
        ("window", c_int64),
    ]


class _Model(Structure):
    _fields_ = [
        ("layers", POINTER(_Layer)),
        *((name, c_int64) for name in ("depth", "hidden", "inner", "heads", "kv_heads", "head_dim")),
        ("eps", c_float),
        ("scale", c_float),
        ("gelu", c_int64),
        ("is_bf16", c_int64),
        ("norm", c_void_p),
        ("head", Matrix),
        ("embeddings", c_void_p),
        ("embedding_scale", c_float),
    ]


class _Segment(Structure):
    _fields_ = [("keys", c_void_p), ("values", c_void_p), ("key_stride", c_int64), ("value_stride", c_int64)]


class _Row(Structure):
    _fields_ = [
        ("segments", POINTER(_Segment)),
        ("lengths", POINTER(c_int64)),
        ("positions", c_void_p),
        ("count", c_int64),
        ("position", c_int64),
        ("behind", c_int64),
        ("token", c_int64),
    ]


class Decoder:
    """One model's forward pass by the kernels. Raises Unsupported for a model that they can't compute.

    `reads_prompts`: of any length; otherwise torch is the faster for those of more than `short` tokens. `keeps_panels`:
    weights once more, in the order in which they are multiplied, where the machine has memory to spare: several rows
    are then computed in little more time than one. They are made when something is decoded or a second prompt is read;
    one prompt has the same bits without them. The weights' own pages go back to the file that they are mapped from.
    """

    ends_early = True  # a pass may end with the entries of some first layers
    ahead = None  # no step is begun before its tokens are known: the host itself computes

    def __init__(self, network: Any, info: ModelInfo, kernels: Kernels):
        self.short = _SHORT_BESIDE_TILES if kernels.in_tiles else _SHORT
        self.reads_prompts = kernels.in_tiles or not has_tiles(torch)
        if not info.is_uniform:
            raise Unsupported("its layers differ in the shape of keys and values, share them or expand them")
        self._kernels = kernels
        self._info = info
        self._heads, self._head_dim, _ = info.shapes[0]
        self._head = network.get_output_embeddings()
        self._rotary: Any = getattr(network.get_decoder(), "rotary_emb", None)
        self._kept: list[Tensor] = []  # what the kernels point to
        self._pages = LargePages()  # of panels
        self._waiting: list[tuple[Callable[[], Matrix], Tensor, bool]] = []  # for their panels
        self._read_once = False
        self._packing = threading.Lock()
        self._kinds = list(dict.fromkeys(_kinds(network, info)))
        self._tables: list[Tensor] = []  # by kind: (positions, 2, head_dim)
        self._table_pointers: Any = None
        self._rows: WeakKeyDictionary[RowCache, _View] = WeakKeyDictionary()
        self._shorter: dict[int, _Model] = {}
        self._dtype: torch.dtype = network.dtype
        self.keeps_panels = _size(network) * _ROOM < psutil.virtual_memory().available
        try:
            self._model = self._describe(network)
        except (AttributeError, IndexError, TypeError) as error:  # it is built of other parts
            raise Unsupported(str(error)) from error

    def warm_up(self) -> None:
        """Nothing: the kernels are compiled."""

    @property
    def rounds_activations(self) -> bool:
        """Whether activations meet weights in eight bits, too."""
        rounded = isinstance(self._head, Int8Linear)
        return self._kernels.in_bytes and rounded and self._dtype == torch.bfloat16

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
        """Read new tokens behind each cache, which is appended to, at `positions` or on from its end.

        Returns the logits behind those of each row's new tokens that are `asked` for, (asked, vocab), float32. A token
        gets the same bits whatever else is read. `many` says how: by matrix products, or weight by weight as is faster
        for a few tokens; the two differ in the last bits. With `layers` the pass ends with the entries of so many, and
        nothing may be asked.
        """
        places: list[Sequence[int]] = [
            range(start := cache.next_position, start + len(new)) if at is None else at.tolist()
            for new, cache, at in zip(ids, caches, positions or [None] * len(ids), strict=True)
        ]
        self._reach(max(map(max, places)) + 1)
        if not (min(map(min, ids)) >= 0 and max(map(max, ids)) < self._vocabulary):
            raise IndexError(f"there is a token outside of the vocabulary of {self._vocabulary}")
        rows = [
            row
            for new, cache, at in zip(ids, caches, places, strict=True)
            for row in self._view(cache, layers).rows(new, cache, at)
        ]
        described = (_Row * len(rows))(*rows)
        if self._waiting and (self._read_once or not many or any(asked)):
            self._pack()
        self._read_once = True
        starts = accumulate(map(len, ids), initial=0)
        wanted = [start + index for start, some in zip(starts, asked, strict=False) for index in some]
        vocab, block = self._model.head.outputs, self._kernels.block
        logits = torch.empty(len(wanted), -(-vocab // block) * block)
        self._kernels.read(
            ctypes.addressof(self._model if layers is None else self._first(layers)),
            ctypes.addressof(described),
            len(rows),
            ctypes.addressof(self._table_pointers),
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
    def seeing(self, windows: Sequence[int | None]) -> Iterator[None]:
        """While this is open, the layers have these windows: for checks, whose rows are short."""
        before = [layer.window for layer in self._described]
        for layer, window in zip(self._described, windows, strict=True):
            layer.window = window or 0
        try:
            yield
        finally:
            for layer, window in zip(self._described, before, strict=True):
                layer.window = window

    def _view(self, cache: RowCache, layers: int | None) -> "_View":
        view = self._rows.get(cache)
        if view is None:
            view = self._rows[cache] = _View(cache, self._info, self._dtype, layers or self._info.layers)
        return view

    def _first(self, layers: int) -> _Model:
        """The model as though it had no more."""
        if layers not in self._shorter:
            self._shorter[layers] = _Model.from_buffer_copy(self._model)
            self._shorter[layers].depth = layers
        return self._shorter[layers]

    def _reach(self, positions: int) -> None:
        """Cosines and sines for positions below this."""
        if self._tables and len(self._tables[0]) >= positions:
            return
        places = torch.arange(max(256, 2 * positions))[None]
        probe = torch.empty(1)
        self._tables = []
        for kind in self._kinds:
            cos, sin = self._rotary(probe, places, *([kind] if kind is not None else []))
            if cos.shape[-1] != self._head_dim:
                raise Unsupported(f"{cos.shape[-1]} of {self._head_dim} dimensions of its heads are rotated")
            self._tables.append(torch.stack([cos[0], sin[0]], dim=1).float().contiguous())
        self._table_pointers = (c_void_p * len(self._tables))(*(table.data_ptr() for table in self._tables))

    # What a model is made of, read once

    def _describe(self, network: Any) -> _Model:
        layers = list(network.get_decoder().layers)
        self._check_sizes(network, layers)
        first, attention = layers[0].mlp, layers[0].self_attn
        inner = first.gate_proj.weight.shape[0]
        norm = network.get_decoder().norm
        described = (_Layer * len(layers))()
        for index, layer in enumerate(layers):
            self._describe_layer(layer, described[index], index, _kinds(network, self._info)[index])
        self._described = described
        hidden = norm.weight.shape[0]
        for size in (hidden, inner, self._head_dim, attention.o_proj.weight.shape[1]):
            if size % self._kernels.block:
                raise Unsupported(f"an inner dimension of {size} is no multiple of {self._kernels.block}")
        return _Model(
            described,
            len(layers),
            hidden,
            inner,
            attention.q_proj.weight.shape[0] // self._head_dim,
            self._heads,
            self._head_dim,
            _eps(norm),
            attention.scaling,
            _is_gelu(first.act_fn),
            self._dtype == torch.bfloat16,
            self._gain(norm, placed=True),
            self._matrix(self._head, lambda: cast("Matrix", self._model.head)),
            *self._embeddings(network.get_input_embeddings(), hidden),
        )

    def _check_sizes(self, network: Any, layers: Sequence[Any]) -> None:
        """Raises Unsupported where a matrix or a norm is of another size than the kernels read."""
        hidden, inner = network.get_decoder().norm.weight.shape[0], layers[0].mlp.gate_proj.weight.shape[0]
        queries, kv = layers[0].self_attn.o_proj.weight.shape[1], self._heads * self._head_dim
        if queries % kv:
            raise Unsupported(f"its queries are {queries} wide, its keys {kv}")
        attention = {"q_proj": (queries, hidden), "k_proj": (kv, hidden), "v_proj": (kv, hidden)}
        attention |= {"o_proj": (hidden, queries)}
        mlp = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
        for layer in layers:
            own: list[tuple[Any, str, tuple[int, ...]]]
            own = [(layer.self_attn, name, size) for name, size in attention.items()]
            own += [(layer.mlp, name, size) for name, size in mlp.items()]
            own += [(layer.self_attn, name, (self._head_dim,)) for name in ("q_norm", "k_norm")]
            own += [(layer, name, (hidden,)) for name in _NORMS]
            for module, name, size in own:
                if hasattr(module, name) and tuple(getattr(module, name).weight.shape) != size:
                    raise Unsupported(f"its {name} is of the size {tuple(getattr(module, name).weight.shape)}")
        if self._head.weight.shape[1] != hidden:
            raise Unsupported(f"its head reads {self._head.weight.shape[1]} numbers")

    def _describe_layer(self, layer: Any, to: _Layer, index: int, kind: str | None) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        sandwich = hasattr(layer, "pre_feedforward_layernorm")  # Gemma norms what a block gives, too
        to.norm_in = self._gain(layer.input_layernorm, placed=True)
        after = self._gain(layer.post_attention_layernorm, placed=True)
        to.norm_attention, to.norm_mlp = (after, None) if sandwich else (None, after)
        if sandwich:
            to.norm_mlp = self._gain(layer.pre_feedforward_layernorm, placed=True)
            to.norm_out = self._gain(layer.post_feedforward_layernorm, placed=True)
        if hasattr(attention, "q_norm"):
            to.q_norm, to.k_norm = self._gain(attention.q_norm), self._gain(attention.k_norm)
        for part, names in ((attention, ("q", "k", "v", "o")), (mlp, ("gate", "up", "down"))):
            for name in names:
                of = partial(getattr, to, name)
                setattr(to, name, self._matrix(getattr(part, f"{name}_proj"), of, placed=name not in ("q", "k", "v")))
        to.rope = self._kinds.index(kind)
        to.window = self._info.windows[index] or 0

    def _matrix(self, linear: Any, of: Callable[[], Matrix], placed: bool = False) -> Matrix:
        """`of` gives the matrix where it lies in the end."""
        weight, rounded = linear.weight, isinstance(linear, Int8Linear)
        plain = isinstance(linear, nn.Linear) and type(weight) is nn.Parameter  # a quantised one is of another type
        if not plain or weight.dtype != (torch.int8 if rounded else self._dtype) or not weight.is_contiguous():
            raise Unsupported("a linear layer is no plain one")
        bias = None if linear.bias is None else self._by_output(linear.bias.float(), placed)
        # The kernels take each integer 2^24 times.
        scales = self._by_output(linear.scale * 2.0**-24, placed) if rounded else None
        if weight.shape[1] % self._kernels.block and (rounded or self.keeps_panels):
            raise Unsupported(f"an inner dimension of {weight.shape[1]} is no multiple of {self._kernels.block}")
        panels = self._panels(weight, placed) if rounded else None  # these are never read otherwise
        if self.keeps_panels and not rounded:
            self._waiting.append((of, weight, placed))
        return Matrix(self._keep(weight), bias, weight.shape[0], panels, scales)

    def _embeddings(self, module: Any, hidden: int) -> tuple[int, float]:
        """Where they lie, and how many times each is taken: Gemma scales them."""
        weight = module.weight
        if weight.dtype != self._dtype or weight.shape[1:] != (hidden,) or not weight.is_contiguous():
            raise Unsupported("its embeddings are no plain ones")
        self._vocabulary = len(weight)
        scale = torch.tensor(float(getattr(module, "embed_scale", 1.0)), dtype=self._dtype).item()
        probe = torch.arange(0, len(weight), max(len(weight) // 16, 1))
        with torch.no_grad():
            got = module(probe).float()
        if (weight[probe].float() * scale - got).norm() > 0.02 * got.norm():
            raise Unsupported("its embeddings are no plain ones")
        return self._keep(weight), scale

    def _by_output(self, numbers: Tensor, placed: bool) -> int:
        """(outputs,), in whole blocks."""
        padded = nn.functional.pad(numbers, (0, -len(numbers) % self._kernels.block))
        return self._keep((self._placed(padded) if placed else padded).contiguous())

    def _panels(self, weight: Tensor, placed: bool) -> int:
        outputs, inputs = weight.shape
        whole = -(-outputs // self._kernels.block) * self._kernels.block
        panels = self._pages.empty(whole, inputs, dtype=weight.dtype)
        bf16, threads = self._dtype == torch.bfloat16, torch.get_num_threads()
        bytes_each = weight.element_size()
        self._kernels.panels(weight.data_ptr(), outputs, inputs, bytes_each, bf16, placed, panels.data_ptr(), threads)
        return self._keep(panels)

    def _pack(self) -> None:
        """Make the panels of all weights."""
        with self._packing:
            mapped = FilePages()
            while self._waiting:
                of, weight, placed = self._waiting.pop()
                of().panels = self._panels(weight, placed)
                mapped.release(weight)
            self._shorter.clear()

    def _gain(self, norm: Any, placed: bool = False) -> int:
        """What an RMS norm multiplies by, read off its results: models store it as it is, or less 1."""
        weight = norm.weight.float()
        probe = torch.linspace(0.5, 1.5, len(weight))
        plain = probe / (probe.square().mean() + _eps(norm)).sqrt()
        with torch.no_grad():
            got = norm(probe.to(norm.weight.dtype)).float()
        gain = min(weight, 1 + weight, key=lambda gain: float((plain * gain - got).norm()))
        if (plain * gain - got).norm() > 0.02 * got.norm():
            raise Unsupported("a norm is no RMS norm")
        return self._keep((self._placed(gain) if placed else gain).contiguous())

    def _placed(self, x: Tensor) -> Tensor:
        return placed(x, self._kernels.block) if self._dtype == torch.bfloat16 else x

    def _keep(self, tensor: Tensor) -> int:
        self._kept.append(tensor)
        return tensor.data_ptr()


class _View:
    """One row's cache as the kernels see it: pointers that change only when the tail moves."""

    def __init__(self, cache: RowCache, info: ModelInfo, dtype: torch.dtype, layers: int):
        self._info = info
        self._layers = layers
        self._dtype = dtype
        self._count = len(cache.segments) + 1
        self._table = (_Segment * (layers * self._count))()  # (layers, count): the tail is each layer's last
        self._lengths = (c_int64 * self._count)(*map(len, cache.segments), 0)
        self._positions = np.empty(0, dtype=np.int64)  # room to spare
        self._entries = 0  # of them, those that are known
        self._moves = -1  # the cache's, when its tail was last looked up
        shared = [[_laid_out(layer, dtype) for layer in segment.layers[:layers]] for segment in cache.segments]
        self._kept = shared  # as long as the kernels point to it
        for index, segment in enumerate(shared):
            for number, layer in enumerate(segment):
                self._table[number * self._count + index] = _segment(layer)

    def rows(self, ids: Sequence[int], cache: RowCache, positions: Sequence[int]) -> list[_Row]:
        """The new tokens' rows, behind the cache as it is now, with room for their entries."""
        info, new = self._info, len(positions)
        heads, dim, _ = info.shapes[0]
        tail, used = cache.room_for(new, self._layers, heads, dim, self._dtype)
        if cache.moves != self._moves:
            self._moves = cache.moves
            for number, layer in enumerate(tail):
                self._table[number * self._count + self._count - 1] = _segment(layer)
        self._lengths[self._count - 1] = used
        known = self._all_positions(cache, positions) if any(info.windows) else None
        return [
            _Row(self._table, self._lengths, known, self._count, place, behind, token)
            for behind, (token, place) in enumerate(zip(ids, positions, strict=True))
        ]

    def _all_positions(self, cache: RowCache, positions: Sequence[int]) -> int:
        entries, new = len(cache), len(positions)
        if entries != self._entries or entries + new > len(self._positions):
            room = np.empty(entries + new + 64, dtype=np.int64)
            self._positions = np.concatenate([cache.positions.numpy(), room])
        self._positions[entries : entries + new] = positions
        self._entries = entries + new
        return self._positions.ctypes.data


def placed(x: Tensor, block: int) -> Tensor:
    """(..., size) in the order in which kernels meet bfloat16: a block's even elements, then its odd ones."""
    pairs = x.reshape(*x.shape[:-1], -1, block // 2, 2)  # (..., blocks, pairs, 2)
    return pairs.transpose(-1, -2).reshape(x.shape)


def _size(network: Any) -> int:
    return sum(weight.nbytes for weight in network.parameters())


def _segment(layer: LayerKV) -> _Segment:
    keys, values = layer
    return _Segment(keys.data_ptr(), values.data_ptr(), keys.stride(1), values.stride(1))


def _laid_out(layer: LayerKV, dtype: torch.dtype) -> LayerKV:
    """As the kernels read it: a head's entries behind each other. Itself where nothing changes."""

    def lay_out(x: Tensor) -> Tensor:  # (1, kv_heads, entries, head_dim)
        x = x.to(dtype)
        return x if x.stride()[2:] == (x.shape[3], 1) else x.contiguous()

    return LayerKV(lay_out(layer.keys), lay_out(layer.values))


def _kinds(network: Any, info: ModelInfo) -> list[str | None]:
    """By layer: which of the model's tables of cosines it uses."""
    if strange := sorted(set(info.rope_types) - _ROPE):
        raise Unsupported(f"its RoPE is of type {strange[0]!r}")
    config = network.config.get_text_config(decoder=True)
    kinds = list(getattr(config, "layer_types", None) or [])
    rotary = getattr(network.get_decoder(), "rotary_emb", None)
    several = bool(kinds) and hasattr(rotary, f"{kinds[0]}_inv_freq")
    return [kinds[index] if several else None for index in range(info.layers)]


def _eps(norm: Any) -> float:
    return float(getattr(norm, "variance_epsilon", None) or norm.eps)


def _is_gelu(activation: Any) -> bool:
    probe = torch.linspace(-3, 3, 13)
    got = activation(probe)
    for gelu, expected in ((True, nn.functional.gelu(probe, approximate="tanh")), (False, nn.functional.silu(probe))):
        if torch.allclose(got, expected, atol=1e-5):
            return gelu
    raise Unsupported("its activation is neither SiLU nor GELU")
