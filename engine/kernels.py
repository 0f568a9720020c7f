"""The kernels' one interface: what compiled code offers on each type of device, and which backend offers it.

A backend is a folder of this package with a `KernelBackend`, and one line in `_BACKENDS`. Everything else in the
engine, the channels and the tools asks here and imports no backend. torch computes what a backend does not offer.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

if TYPE_CHECKING:
    from .kv.cache import RowCache
    from .model.model_config import ModelInfo

__all__ = [
    "SWITCH",
    "AngleTables",
    "DecodeKernels",
    "KernelBackend",
    "KeyRotator",
    "LeanFuserKernel",
    "Unsupported",
    "backend",
    "backends",
    "switched_off",
]

SWITCH = "CACHEGRAPH_KERNELS"  # "off": torch alone

# By type of device: module and class of its backend. A backend's module imports what it needs only when asked for it.
_BACKENDS = {
    "cpu": (".cpu.backend", "CPUBackend"),
    "cuda": (".gpu.backend", "GPUBackend"),
}

BeginNext = Callable[[Sequence["RowCache"], Tensor, Callable[[], list[int]]], None]


class Unsupported(Exception):
    """Raised for a model that a backend's kernels can't compute; the message says why."""


class DecodeKernels(Protocol):
    """One model's forward pass by kernels. It is used only after its logits matched the model's own."""

    @property
    def max_short_prompt(self) -> int:
        """The largest number of tokens of a prompt that the decoding kernels read."""

    @property
    def reads_prompts(self) -> bool:
        """Whether it reads longer prompts, too; otherwise torch does."""

    @property
    def stops_early(self) -> bool:
        """Whether a pass may end after some first layers."""

    @property
    def rounding_error(self) -> float:
        """How far its rounding may take logits from the model's in float32, as a share; 0: no further than torch."""

    @property
    def begin_next(self) -> BeginNext | None:
        """Begin the step that reads these tokens behind these caches, (rows,), before the host knows them.

        The function that is passed gives the tokens as soon as they are known. No cache changes by it. None: the host
        itself computes, so it has nothing to begin.
        """

    def read(
        self,
        ids: Sequence[Sequence[int]],
        caches: Sequence["RowCache"],
        asked: Sequence[Sequence[int]],
        positions: Sequence[Tensor | None] | None = None,
        many: bool = False,
        layers: int | None = None,
    ) -> Tensor:
        """Read new tokens behind each cache, which is appended to, at `positions` or on from its end.

        Returns the logits behind those of each row's new tokens that are `asked` for, (asked, vocab). `many`: by the
        kernels for long prompts. With `layers` the pass ends after that many layers, and no logits may be asked for.
        """

    def warm_up(self) -> None:
        """Prepare what would otherwise delay the first reply."""

    def settled(self) -> "DecodeKernels":
        """The kernels to decode with once the weights are at the addresses where they stay: itself, or others."""

    def with_windows(self, info: "ModelInfo") -> "AbstractContextManager[DecodeKernels]":
        """Within the block, kernels whose layers have the windows of `info`. For checks, whose rows are short."""


class AngleTables(Protocol):
    """Cosines and sines by position, in the order in which kernels read them."""

    def at(self, positions: Tensor) -> Tensor:
        """(positions, 2, head_dim) of float32, for int64 positions, (positions,)."""


class KeyRotator(Protocol):
    """Rotates cached keys by RoPE in which element i of a head pairs with element i + head_dim / 2."""

    @property
    def unit(self) -> int:
        """head_dim has to be a multiple of it."""

    def tables(self, compute: Callable[[Tensor], tuple[Tensor, Tensor]]) -> AngleTables:
        """Tables of what `compute` gives at positions, (positions,): cosines and sines, (1, positions, head_dim)."""

    def table(self, cosines_and_sines: tuple[Tensor, Tensor]) -> Tensor:
        """One such table, (positions, 2, head_dim), of cosines and sines, (1, positions, head_dim) each."""

    def takes(self, keys: Sequence[Tensor]) -> bool:
        """Whether it can rotate these layers' keys, (1, kv_heads, positions, head_dim) each."""

    def rotate(self, keys: Sequence[Tensor], tables: Sequence[Tensor]) -> list[Tensor]:
        """The layers' keys, (1, kv_heads, positions, head_dim) each, rotated by their tables. Copies."""


KVPair = tuple[Tensor, Tensor]  # keys and values, each (batch, kv_heads, positions, head_dim)


class LeanFuserKernel(Protocol):
    """Computes the projectors of a lean fuser, all layers in one call. The batch has one row."""

    def takes(self, receiver: Sequence[KVPair], sharer: Sequence[KVPair], rotated: bool) -> bool:
        """Whether it can correct these layers, (1, kv_heads, positions, head_dim) each.

        `rotated`: keys are corrected as they are before RoPE.
        """

    def __call__(
        self,
        receiver: Sequence[KVPair],
        sharer: Sequence[KVPair],
        pairs: tuple[Tensor, Tensor],
        tables: Sequence[Tensor | None],
    ) -> tuple[list[KVPair], Tensor]:
        """By projector, the receiver's layer corrected at pairs of a receiver's and a sharer's position.

        `sharer`: the layer that each projector reads. `pairs`: (pairs,) int64 each. `tables`: a `KeyRotator`'s, at the
        receiver's positions; None for a layer whose keys it reads as they are. Also returns, (layers, 2, 2), the
        squares of what was added and of what was there, of keys and of values.
        """


class KernelBackend:
    """What kernels offer on one type of device. This base offers nothing."""

    # Kernels that leave a model's own Python code aside compute only models whose attention and output head are plain.
    # The others run that code, so any model should work: one that does not is worth a warning.
    bypasses_model = False

    def __init__(self, device_type: str):
        self.device_type = device_type

    def status(self) -> str:
        """One line for people: what computes, or why nothing does."""
        return "none"

    def facts(self) -> list[str]:
        """All facts of this machine on which the results of the kernels depend."""
        return []

    def is_temporary(self, reason: str) -> bool:
        """Whether another process may have the kernels that this one lacks for this reason."""
        return False

    def why_not(self, network: Any) -> str | None:
        """Why there are no kernels for a model (transformers' PreTrainedModel) where it is now; None: there may be."""
        return f"there are none for {network.dtype} on {self.device_type}"

    def create_decoder(self, network: Any, info: "ModelInfo") -> DecodeKernels:
        """Raises Unsupported for a model that they can't compute, or whatever a compiler says."""
        raise Unsupported(self.why_not(network) or "there are none")

    def key_rotator(self) -> KeyRotator | None:
        return None

    def lean_fuser(self, projectors: Sequence[Any]) -> LeanFuserKernel | None:
        """For projectors of a lean fuser in bfloat16, all with open gates; None where it can't compute them."""
        return None

    def widen_linears(self, network: nn.Module) -> None:
        """Let the large bfloat16 linear layers of a network that are here compute in float32, where that is faster."""

    def float32_is_faster(self) -> bool:
        """Whether matrices of float32 are multiplied faster than those of bfloat16."""
        return False


@cache
def backend(device_type: str) -> KernelBackend:
    """The backend for a type of device, as in `torch.device(...).type`; one that offers nothing for all others."""
    if device_type not in _BACKENDS:
        return KernelBackend(device_type)
    module, name = _BACKENDS[device_type]
    made: KernelBackend = getattr(import_module(module, __package__), name)(device_type)
    return made


def backends() -> list[KernelBackend]:
    """All that there are."""
    return [backend(device_type) for device_type in _BACKENDS]


def switched_off() -> bool:
    """Whether the environment asks for torch alone."""
    return os.environ.get(SWITCH, "").lower() in ("off", "0", "no")
