"""What is computed here on a CPU where torch is slow: decoding, prompts, and products in bfloat16.

kernels.cpp   what Python calls; compiled on the machine that runs it
model.h       what a decoder-only transformer is made of; decode.h: a few new tokens; prefill.h: many
gemm_packed.h      matrices in the order in which they are multiplied; gemv.h: as they lie; gemm_int8.h: in eight bits
gemm_amx.h       products by AMX
rope.h        keys turned to other positions; lean_fuser.h: what a lean fuser computes
simd.h     vectors
thread_pool.h        threads
build.py      compiles it, once a machine, and says why where it can't
threads.py    how many torch takes for small operations
linear.py     bfloat16 linear layers on CPUs that are faster at float32
decoder.py    a transformers model as the kernels see it, held to the model's own results before it is used
turn.py, lean.py  what calls those
"""

import platform
from typing import Any

from .build import status

__all__ = ["computes_bfloat16", "has_tiles", "status"]


def computes_bfloat16(torch: Any) -> bool:
    """Whether this CPU has instructions for bfloat16; without them torch emulates it."""
    if hasattr(torch.cpu, "get_capabilities"):
        can = torch.cpu.get_capabilities()
        return any(can.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))
    # Older versions of torch have no public way to ask.
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def has_tiles(torch: Any) -> bool:
    """Whether torch multiplies matrices by AMX, or in ways of ARM: fast, but it rounds by the number of rows."""
    if hasattr(torch.cpu, "get_capabilities"):
        can = torch.cpu.get_capabilities()
        return can.get("architecture") != "x86_64" or bool(can.get("amx_bf16", False))
    return platform.machine() not in ("x86_64", "AMD64") or bool(torch.cpu._is_amx_tile_supported())
