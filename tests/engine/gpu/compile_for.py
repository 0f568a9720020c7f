"""Compile the kernels for GPUs that need not be there, and say how much shared memory each takes.

python compile_for.py ARCHITECTURE-DTYPE-HEAD_DIM...
"""

import sys
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from cachegraph.engine.gpu import kernels

KERNELS = {name: getattr(kernels, name) for name in ("_append", "_attend", "_merge")}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class Compiles:
    """Stands for a kernel: a launch of it compiles it for these arguments."""

    def __init__(self, kernel: Any, architecture: int):
        self._kernel = kernel
        self._target = GPUTarget("cuda", architecture, 32)

    def __getitem__(self, grid: Any) -> Any:
        return self._compile

    def _compile(self, *arguments: Any) -> None:
        kinds, constants = {}, {}
        for parameter, value in zip(self._kernel.params, arguments, strict=True):
            if parameter.is_constexpr:
                kinds[parameter.name], constants[parameter.name] = "constexpr", value
            else:
                kinds[parameter.name] = triton.runtime.jit.mangle_type(value)
        done = triton.compile(ASTSource(self._kernel, kinds, constants), target=self._target)
        assert done.asm["cubin"]
        print(case, self._kernel.__name__, done.metadata.shared)


def compile_for(architecture: int, dtype: torch.dtype, dim: int) -> None:
    for name, kernel in KERNELS.items():
        setattr(kernels, name, Compiles(kernel, architecture))
    segments, rows = torch.zeros(4, 8, dtype=torch.int64), torch.zeros(6, 64, dtype=torch.int64)
    query, new = torch.zeros(1, 6, 8, dim, dtype=dtype), torch.zeros(1, 2, 8, dim, dtype=dtype)
    kernels.append(segments, rows, new, new, True)
    kernels.attend(segments, rows, query, 2, 0.125, 512, None, None)
    kernels.attend(segments, rows, query, 2, 0.125, None, 30.0, query[0, :, 0, 0])


if __name__ == "__main__":
    for case in sys.argv[1:]:
        architecture, dtype, dim = case.split("-")
        compile_for(int(architecture), DTYPES[dtype], int(dim))
