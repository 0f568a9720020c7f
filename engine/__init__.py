"""One model on one device: loading, prefill, decode, KV caches, batching.

engine             serves one model: prefill, generate, from any event loop
pool               the models of this process, each loaded once
request            results of requests, and their costs
spec               the engine's part of a recipe
kernels            the interface of compiled kernels, and their backends by type of device
diagnostics        facts about this machine, for `cachegraph doctor`
transfer           copies between host and device that don't stall the GPU
torch_threads      how many threads torch uses for small operations
cpu_capabilities   what torch computes natively on this CPU

batching/    admission, scheduling, the engine loop, the KV budget
kv/          KV caches, RoPE, recurrent state
model/       loading, verification, forward passes, attention
sampling/    from logits to tokens; JSON schemas and grammars
text/        tokenizers, control tokens, chat templates
catalogue/   from a model's name to a folder on this disk
cpu/  gpu/   the kernels
"""
