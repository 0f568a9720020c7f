"""Counts the KV memory of an engine against its budget. Every byte counts once, however many rows read it.

The tails of rows at work grow, so what they may fill is reserved for them, in whole blocks. All other KV that the
engine has seen (shared segments, and what requests leave behind) is counted by its storage until torch frees it,
whatever holds it: a payload on an edge, another run, a variable of the caller.
"""

import os
import threading
import weakref
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import ByteSize, TypeAdapter, ValidationError

from cachegraph.errors import ConfigError

if TYPE_CHECKING:
    from ..kv.cache import KV
    from ..model.load import LoadedModel

__all__ = ["KVBudget", "choose_budget", "default_budget", "position_bytes", "size_words"]

VARIABLE = "CACHEGRAPH_KV_MEMORY"
# Of what is free once the weights are loaded. Less on a CPU, whose memory everybody shares.
PERCENT = {"cuda": 60, "mps": 40, "cpu": 25}


class KVBudget:
    """The KV budget of one engine and what is in use, in bytes. For the engine's thread."""

    def __init__(self, limit: int):
        self.limit = limit
        self.peak = 0
        self._reserved: dict[int, int] = {}  # by row
        self._held = 0  # storages
        self._storages: dict[int, weakref.ref[Any]] = {}  # by address
        self._by_run: Counter[object] = Counter()
        self._counting = threading.Lock()  # protects _held and _by_run, which other threads read, too
        self._freed: deque[tuple[int, object]] = deque()  # from any thread; counted at the next look

    @property
    def reserved(self) -> int:
        """Reserved for the tails of rows at work."""
        return sum(list(self._reserved.values()))

    @property
    def held(self) -> int:
        """Held by storages that are alive."""
        with self._counting:
            while self._freed:
                self._count(*self._freed.popleft())
            return self._held

    @property
    def used(self) -> int:
        return self.reserved + self.held

    @property
    def room(self) -> int:
        """What may still be taken; below 0 where a run had to exceed the budget."""
        return self.limit - self.used

    def held_by(self, run: object) -> int:
        """The KV that a run's requests left behind and that is still alive."""
        return self._by_run[run] if self.held else 0

    def reserve(self, row: int, size: int) -> None:
        """Reserve `size` bytes for this row in place of what it had."""
        self._reserved[row] = size
        self.peak = max(self.peak, self.used)

    def release(self, row: int) -> None:
        self._reserved.pop(row, None)

    def hold(self, segments: "Iterable[KV]", run: object = None) -> None:
        """Count these segments for a run until they are freed; those that are counted already count once."""
        for segment in segments:
            for tensor in segment.tensors():
                self._hold(tensor.untyped_storage(), run)
        self.peak = max(self.peak, self.used)

    def _count(self, change: int, run: object) -> None:
        self._held += change
        self._by_run[run] += change
        if not self._by_run[run]:
            del self._by_run[run]

    def _hold(self, storage: Any, run: object) -> None:
        address, size, freed = storage.data_ptr(), storage.nbytes(), self._freed
        known = self._storages.get(address)
        if not size or (known is not None and known() is storage):
            return
        storages = self._storages

        def gone(reference: "weakref.ref[Any]") -> None:
            if storages.get(address) is reference:
                del storages[address]
            freed.append((-size, run))

        storages[address] = weakref.ref(storage, gone)
        with self._counting:
            self._count(size, run)


def position_bytes(model: "LoadedModel", layers: int | None = None) -> int:
    """Bytes of one position in the first `layers` layers; None: in all."""
    return sum(shape.width for shape in model.info.shapes[:layers]) * model.dtype.itemsize


def choose_budget(asked: int | None, devices: Sequence[str]) -> int:
    """The recipe's budget, else the environment's, else a part of the memory that is free now.

    `devices`: by layer. Of several, the one whose layers fill it first decides. Raises ConfigError if the variable
    holds no size.
    """
    if asked is not None:
        return asked
    text = os.environ.get(VARIABLE, "")
    if not text:
        share = Counter(devices)
        return min(default_budget(device) * len(devices) // layers for device, layers in share.items())
    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise ConfigError(f"{VARIABLE} is {text!r}, which is not a size; set it to one such as '2GB'") from None


def default_budget(device: str) -> int:
    """A part of the memory that is free on the device now."""
    import torch

    kind = device.partition(":")[0]
    if kind == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
    elif kind == "mps":
        free = torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    else:
        import psutil

        free = psutil.virtual_memory().available
    return free * PERCENT.get(kind, PERCENT["cpu"]) // 100


def size_words(size: int) -> str:
    """Format a size for people, such as 2.0GB."""
    return ByteSize(size).human_readable(decimal=True)
