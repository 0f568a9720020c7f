"""KV caches and what positions do to them: RoPE, recurrent state.

cache             KV (frozen, shared) and RowCache (what one row attends to)
shapes            the shape of a layer's KV
rope              moves cached keys to other positions
rotary_scheme     how a layer's keys are rotated
rope_by_length    RoPE whose frequencies depend on a row's length (longrope, dynamic)
recurrent_state   the recurrent state of a row, for hybrid models
"""
