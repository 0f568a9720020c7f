"""Training data: reading, encoding and sampling examples.

data_spec       The `data` part of a training recipe
dataset         Training examples as text, and the dev split
examples        Examples as both models' tokens
packed_replies  Log-probabilities of replies after shared caches, packed in one row
sampler         Sampler of the examples of each step
"""
