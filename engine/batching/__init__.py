"""Continuous batching: admission, scheduling, the engine loop, and the KV budget.

engine_loop         the engine's thread: takes requests, computes steps, returns results
request_state       one request at work
request_context     the run and tenant that a request is made for
loop_bridge         passes results from the engine's thread to an event loop
scheduler           chooses the requests of the next step
admission           admits requests as KV memory allows, and swaps them out
run_admission       admits requests so that every run can finish
kv_budget           counts KV memory against the budget
kv_offload          moves a waiting request's cache out of the device's memory
prefix_cache        reuses the KV of earlier prompts
long_rope_prefill   reads a row again if it outgrows its RoPE frequencies
protocols           what admission and scheduler know of a request
"""
