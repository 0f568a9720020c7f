"""Training data: rows, examples as both models read them, sampling.

data_spec       A training recipe's slice about rows
dataset         Rows to learn from
examples        One example as both models will read it
packed_replies  Replies behind shared caches, under autograd
sampler         Which rows a step learns from
"""
