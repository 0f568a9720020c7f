"""KV caches and what positions do to them: RoPE, recurrent state.

cache              KV caches as values
long_rope_prefill  Rows of models whose RoPE depends on their length
recurrent_modules  The modules of a model that keep recurrent states
recurrent_state    Recurrent state of rows
rope               Moving keys to other positions
rope_by_length     RoPE whose frequencies depend on how long a row is (longrope, dynamic)
shapes             The shape of one layer's KV cache
"""
