"""What is computed here on a CPU where torch is slow: bfloat16 without instructions for it, and decoding.

kernels.cpp   one decoding step in one call; linear layers in bfloat16; compiled on the machine that runs it
build.py      compiles it, once a machine, and says why where it can't
linear.py     bfloat16 linear layers on CPUs without bfloat16 instructions
decoder.py    a transformers model as the kernels see it, held to the model's own results before it is used
"""

from typing import Any

from .build import status

__all__ = ["computes_bfloat16", "status"]


def computes_bfloat16(torch: Any) -> bool:
    """Whether this CPU has instructions for bfloat16; without them torch emulates it."""
    if hasattr(torch.cpu, "get_capabilities"):
        can = torch.cpu.get_capabilities()
        return any(can.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))
    # Older versions of torch have no public way to ask.
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
