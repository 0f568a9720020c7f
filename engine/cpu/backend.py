"""The CPU's `KernelBackend`: kernels in C++, compiled for the CPU that runs them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..kernels import KernelBackend, Unsupported, switched_off
from .build import Kernels, compiler, cpu_features, failure, kernels

if TYPE_CHECKING:
    from ..model.model_config import ModelInfo
    from .decoder import CPUDecoder
    from .lean_fuser import CPULeanFuser
    from .rope import CPUKeyRotator

__all__ = ["CPUBackend"]

_LARGE_ENOUGH = 2**24  # parameters; a smaller model's step is over before a kernel could help


class CPUBackend(KernelBackend):
    """Decodes, reads prompts, rotates keys, applies lean fusers and multiplies matrices."""

    bypasses_model = True

    def status(self) -> str:
        found = kernels()
        if isinstance(found, Kernels):
            return f"compiled for this CPU, {found.block} weights at a time"
        return f"none: {found}"

    def facts(self) -> list[str]:
        return [cpu_features(), str(compiler() if not switched_off() else None)]

    def is_temporary(self, reason: str) -> bool:
        return reason == failure()

    def why_not(self, network: Any) -> str | None:
        if network.dtype not in (torch.bfloat16, torch.float32):
            return super().why_not(network)
        if network.num_parameters() < _LARGE_ENOUGH:
            return "the model is small"
        found = kernels()
        return None if isinstance(found, Kernels) else found

    def create_decoder(self, network: Any, info: "ModelInfo") -> "CPUDecoder":
        from .decoder import CPUDecoder

        found = kernels()
        if not isinstance(found, Kernels):
            raise Unsupported(found)
        return CPUDecoder(network, info, found)

    def key_rotator(self) -> "CPUKeyRotator | None":
        from .rope import CPUKeyRotator

        found = kernels()
        return CPUKeyRotator(found) if isinstance(found, Kernels) else None

    def lean_fuser(self, projectors: Sequence[Any]) -> "CPULeanFuser | None":
        from .lean_fuser import CPULeanFuser

        found = kernels()
        return CPULeanFuser.of(projectors, found) if isinstance(found, Kernels) else None

    def widen_linears(self, network: nn.Module) -> None:
        from .linear import widen_linears

        widen_linears(network)

    def float32_is_faster(self) -> bool:
        from .linear import float32_is_faster

        return float32_is_faster()
