"""What torch can do natively on this CPU. Takes the torch module as an argument, so importing this needs no torch."""

import platform
from typing import Any

__all__ = ["computes_bfloat16", "has_tiles"]


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
