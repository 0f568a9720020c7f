"""Continuous batching: admission, scheduling, the worker thread, and the KV budget.

admission        The rows of one engine
kv_budget        How much KV an engine holds, against its budget
kv_offload       A row's tail, and its recurrent state, on their way out of the device's memory and back, bit by b
loop_bridge      From an engine's thread back into an event loop, whichever loop that is
prefix_cache     Prompts that were read before, found again by their tokens
request_context  On whose behalf an engine is asked
request_state    A request at work in an engine
run_admission    Admission by run
scheduler        Which rows run in the next step
worker           An engine's thread
"""
