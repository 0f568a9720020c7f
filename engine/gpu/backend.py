"""The `KernelBackend` of CUDA GPUs: kernels in Triton, which comes with torch where there are GPUs."""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from ..kernels import SWITCH, KernelBackend, switched_off
from ..model.devices import is_spread

if TYPE_CHECKING:
    from ..model.model_config import ModelInfo
    from .decoder import GPUDecoder

__all__ = ["GPUBackend"]


class GPUBackend(KernelBackend):
    """Decodes. The model's own code runs, with the kernels as its attention."""

    def status(self) -> str:
        if switched_off():
            return f"none: {SWITCH} turns them off"
        try:
            return f"by Triton {version('triton')}"
        except PackageNotFoundError:
            return "none: Triton is not installed (pip install triton for faster decoding)"

    def facts(self) -> list[str]:
        import torch

        return [
            repr((torch.cuda.get_device_properties(index), torch.version.cuda, torch.version.hip))
            for index in range(torch.cuda.device_count())
        ]

    def why_not(self, network: Any) -> str | None:
        if is_spread(network):
            return super().why_not(network)
        return "they are switched off" if switched_off() else None

    def create_decoder(self, network: Any, info: "ModelInfo") -> "GPUDecoder":
        from .decoder import GPUDecoder

        return GPUDecoder(network, info)
