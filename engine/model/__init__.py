"""One model: loading, verification, forward passes, attention, devices.

attention           Attention over rows of different lengths without padding
devices             Where the layers of a model are
file_sizes          Files of a model's folder that a library would read whole into memory, and how large they may
forward             One forward pass of one model over the new tokens of many rows
hf_fallback         Rows of a model whose cache can't travel
int8                Linear layers whose weights are eight-bit integers, one scale an output
load                From a folder of weights to a model that the engine can run, checked before it is trusted with
load_report         What transformers reports after loading weights
model_config        What must be known of a model to carry its KV cache around
probe               A few tokens that a model reads in several ways, and what it makes of them by itself
quiet_transformers  Silence for transformers' own messages
text_model          Which class of transformers reads a model, and the text part of one that has others beside it
verdict             What the check at load found out about a model
verdict_cache       Verdicts of the check at load, kept from one start to the next
verify_model        What a model must show before it is trusted
"""
