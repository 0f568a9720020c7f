"""Decoding on a GPU: a step of many rows whose shapes, addresses and kernel launches never change.

A CUDA graph therefore replays it for the price of one launch, whatever the rows have read. The next step can begin with
tokens that only the GPU knows yet: the host learns them while it runs, and drops the results if it wants other rows.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ..kernels import Unsupported
from ..kv.cache import LayerKV, RowCache
from ..model.attention import attending
from ..model.devices import home_of
from ..model.forward import cache_argument
from ..model.model_config import ModelInfo
from ..transfer import to_device
from . import kernels
from .tables import MOST_ROWS, POSITION, TOKEN, Tables

__all__ = ["GPUDecoder"]

_SIZES = [1 << power for power in range(MOST_ROWS.bit_length())]  # of steps, in rows
_ALIKE = 0.999  # cosine of what a graph computes and what it was recorded of


class GPUDecoder:
    """`DecodeKernels` of one model. Raises Unsupported for a model that the kernels can't compute.

    `replays`: it records a step of each size when one is first wanted, by `warm_up` at the latest, and replays it. That
    needs the weights at the addresses where they stay, since a recording holds them.
    """

    max_short_prompt = 1
    reads_prompts = False
    stops_early = False
    rounding_error = 0.0

    def __init__(self, network: Any, info: ModelInfo, *, replays: bool = False):
        if not info.is_uniform:
            raise Unsupported("its layers differ in the shape of keys and values, share them or expand them")
        if info.shapes[0].key_dim % 8:
            raise Unsupported(f"a head_dim of {info.head_dim} is not a multiple of 8")
        self.replays = replays
        self._network = network
        self._info = info
        self._device = home_of(network)
        self._tables = Tables(network, info, self._device)
        self._steps: dict[int, Callable[[], Tensor]] = {}  # by rows
        self._pool: Any = None  # of memory, which all graphs share: one runs at a time
        self._ahead: _Ahead | None = None

    def settled(self) -> "GPUDecoder":
        return GPUDecoder(self._network, self._info, replays=True)  # this one may have computed in float32

    @contextmanager
    def with_windows(self, info: ModelInfo) -> Iterator["GPUDecoder"]:
        yield GPUDecoder(self._network, info)

    def warm_up(self) -> None:
        """Compile and record steps of all sizes, so that no reply waits for it, and the memory they take is known."""
        with torch.inference_mode(), suppress(torch.OutOfMemoryError):  # the rest are recorded when wanted
            for size in _SIZES:
                self.read([[1]] * size, [RowCache() for _ in range(size)], [[]] * size)

    def read(
        self,
        ids: Sequence[Sequence[int]],
        caches: Sequence[RowCache],
        asked: Sequence[Sequence[int]],
        positions: Sequence[Tensor | None] | None = None,
        many: bool = False,
        layers: int | None = None,
    ) -> Tensor:
        """As `DecodeKernels.read`, for one new token a row, in all layers: logits, (rows asked for, vocab)."""
        assert layers is None
        places = [
            cache.next_position if at is None else int(at[0])
            for cache, at in zip(caches, positions or [None] * len(ids), strict=True)
        ]
        tokens = [token for (token,) in ids]
        parts = []
        for start in range(0, len(tokens), MOST_ROWS):
            some = slice(start, start + MOST_ROWS)
            parts.append(
                self._read(tokens[some], caches[some], places[some], [bool(offsets) for offsets in asked[some]])
            )
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def begin_next(self, caches: Sequence[RowCache], tokens: Tensor, known: Callable[[], list[int]]) -> None:
        """As `DecodeKernels.begin_next`, for tokens (rows,): the caches count the new entries once they are read."""
        if len(caches) > MOST_ROWS or any(cache.capacity_for(1) > cache.capacity for cache in caches):
            return
        places = [cache.next_position for cache in caches]
        try:
            logits = self._run(tokens, caches, places)
        except RuntimeError:  # the step itself will fail, and say so
            return
        rows = WeakKeyDictionary({cache: _Place(row, *_state(cache, places[row])) for row, cache in enumerate(caches)})
        self._ahead = _Ahead(logits, rows, known)

    def _read(
        self, tokens: Sequence[int], caches: Sequence[RowCache], places: Sequence[int], asked: Sequence[bool]
    ) -> Tensor:
        ahead, self._ahead = self._ahead, None
        rows = ahead.rows_of(tokens, caches, places) if ahead is not None else None
        if ahead is not None and rows is not None:
            logits = ahead.logits
        else:
            rows = list(range(len(tokens)))
            logits = self._run(tokens, caches, places)
        for cache, place in zip(caches, places, strict=True):
            cache.reserve(torch.tensor([place]))
            cache.commit()
        wanted = [row for row, wants in zip(rows, asked, strict=True) if wants]
        if wanted == list(range(len(wanted))):
            return logits[: len(wanted)].clone()  # the next step writes over them
        return logits[to_device(wanted, torch.int64, self._device)]

    def _run(self, tokens: Sequence[int] | Tensor, caches: Sequence[RowCache], places: Sequence[int]) -> Tensor:
        """The logits of all rows, and maybe more: (at least rows, vocab)."""
        with self._on_device():
            if self._tables.show(tokens, caches, places):
                self._forget_steps()
            size = next(size for size in _SIZES if size >= len(caches))
            if size not in self._steps:
                self._steps[size] = self._step(size)
            return self._steps[size]()

    def _on_device(self) -> AbstractContextManager[Any]:
        return torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()

    def _step(self, size: int) -> Callable[[], Tensor]:
        compute = partial(self._compute, size)
        if self.replays and self._device.type == "cuda":
            try:
                return self._recorded(compute)
            except torch.OutOfMemoryError:  # says nothing of the model
                raise
            except RuntimeError as error:  # a model that asks the host something in between can't be recorded
                self.replays = False
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                log = logging.getLogger("cachegraph")
                log.warning("%s decodes without CUDA graphs: %s", self._info.model_type, reason)
        return compute

    def _forget_steps(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # one may be running
        self._steps.clear()

    def _compute(self, size: int) -> Tensor:
        """(size, vocab), from the tables alone."""
        rows = self._tables.rows[:, :size]
        with attending(_Rows(self._tables, self._info.windows)) as cache:
            ids, positions = rows[TOKEN : TOKEN + 1], rows[POSITION : POSITION + 1]  # (1, size) each
            inputs = {"input_ids": ids, "position_ids": positions, cache_argument(self._network): cache}
            logits: Tensor = self._network(**inputs, use_cache=True).logits[0]
            return logits

    def _recorded(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """The same as a CUDA graph. Raises RuntimeError where it can't be recorded, or computes something else."""
        current, aside = torch.cuda.current_stream(self._device), torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        aside.wait_stream(current)
        with torch.cuda.stream(aside):  # what is computed for the first time may ask the host for memory or compilation
            for _ in range(2):
                expected = compute()
        current.wait_stream(aside)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # The threads of other models keep running.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            logits = compute()

        def replay() -> Tensor:
            graph.replay()
            return logits

        if cosine_similarity(replay().float().flatten(), expected.float().flatten(), dim=0).item() < _ALIKE:
            raise RuntimeError("the recorded step computes something else")
        return replay


class _Place(NamedTuple):
    """A row of a step that was begun, and what must still hold of its cache when it is wanted."""

    row: int
    used: int
    moves: int
    position: int


def _state(cache: RowCache, position: int) -> tuple[int, int, int]:
    return cache.used, cache.moves, position


class _Ahead(NamedTuple):
    """A step that was begun before anybody asked for it."""

    logits: Tensor
    rows: WeakKeyDictionary[RowCache, _Place]
    known: Callable[[], list[int]]  # its tokens

    def rows_of(self, tokens: Sequence[int], caches: Sequence[RowCache], positions: Sequence[int]) -> list[int] | None:
        """Where these rows are in it; None where one is not, or not as it is now."""
        known, found = self.known(), []
        for token, cache, position in zip(tokens, caches, positions, strict=True):
            place = self.rows.get(cache)
            if place is None or place[1:] != _state(cache, position) or known[place.row] != token:
                return None
            found.append(place.row)
        return found


class _Rows:
    """What the attention of a step finds (attention.Attends)."""

    def __init__(self, tables: Tables, windows: Sequence[int | None]):
        self._tables = tables
        self._windows = windows

    def cached(self, new: LayerKV) -> LayerKV:
        return new

    def length(self, layer: int) -> int:
        return 0

    def attend(
        self, layer: int, query: Tensor, given: LayerKV, scale: float, softcap: float | None, sinks: Tensor | None
    ) -> Tensor:
        segments, rows, dtype = self._tables.segments[layer], self._tables.rows, self._tables.dtype
        keys, values = (tensor.to(dtype) for tensor in given)
        kernels.append(segments, rows, keys, values, any(self._windows))
        window, kv_heads = self._windows[layer], keys.shape[1]
        out = kernels.attend(segments, rows, query.to(dtype), kv_heads, scale, window, softcap, sinks)
        return out.to(query.dtype)
