"""Kernels for GPUs: decoding in steps whose shapes and launches never change. Opened by engine/kernels.py alone.

backend   the KernelBackend: all that the rest of the engine gets from here
decoder   a step of many rows, replayed as a CUDA graph; the next one begins before the host knows its tokens
tables    addresses and lengths of the rows' caches, in the GPU's memory
kernels   attention over caches in parts, in Triton
"""
