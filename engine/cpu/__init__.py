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

from .build import status

__all__ = ["status"]
