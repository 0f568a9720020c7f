"""Kernels for CPUs, where torch is slow: decoding, prompts, products in bfloat16. Opened by engine/kernels.py alone.

backend         the KernelBackend: all that the rest of the engine gets from here
build           compiles kernels.cpp once a machine, and says why if it can't
decoder         decodes, and reads prompts: CPUDecoder
describe        a transformers model as C structures
weights         its matrices and norms as the kernels read them, and packed copies
cache_view      a row's KV cache as pointers
structs         those C structures, for ctypes
layout          the order of bfloat16 numbers
rope            rotates cached keys
lean_fuser      applies a lean fuser to a cache
linear          bfloat16 linear layers on CPUs that are faster at float32
huge_pages      memory in pages of two megabytes

kernels.cpp     the functions that Python calls
model.h         the parts of a decoder-only transformer
decode.h        a forward pass over a few new tokens
prefill.h       a forward pass over many
gemv.h          matrices times a few rows, as they lie
gemm_packed.h   packed matrices times many rows
gemm_int8.h     the same in eight-bit integers
gemm_amx.h      the same by AMX tiles
rope.h          rotates keys
lean_fuser.h    a lean fuser's layers
simd.h          vectors
thread_pool.h   threads
"""
