"""Decoding on a GPU, in steps whose shapes and launches never change.

kernels.py  attention over caches in parts, in Triton
tables.py   where those find the caches
stepper.py  a step of many rows, recorded as a CUDA graph, and the one after it begun ahead of the host
"""

from importlib.metadata import PackageNotFoundError, version

from ..cpu.build import SWITCH, switched_off

__all__ = ["status"]


def status() -> str:
    """One line for people: what steps on GPUs are computed with."""
    if switched_off():
        return f"none: {SWITCH} turns them off"
    try:
        return f"by Triton {version('triton')}"
    except PackageNotFoundError:
        return "none: Triton is not installed (pip install triton for faster decoding)"
