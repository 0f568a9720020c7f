"""The verification at load: what a model may be trusted with.

verify_model     compares the packed forward pass, moved keys and the fallback with the model's own results
verify_kernels   the same for the kernels
probe            the rows that are compared
comparisons      compares logits, and records the comparisons
in_float32       lets a 16-bit model compute in float32
verdict          what the verification found, as plain values
verdict_cache    verdicts kept from one process to the next
"""
