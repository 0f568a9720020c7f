"""Recipes as models of the Language Model Evaluation Harness.

bare      A recipe that is nothing but its model, played as the harness's own `hf` model plays it, token for token
decoding  From a request's generation arguments, which are those of transformers, to how an agent decodes
in_order  Many requests at once, their results in order, with a bar for whoever waits
model     The adapter
options   What `--model_args` says
player    What plays requests
tally     What every edge did, over all requests
"""
