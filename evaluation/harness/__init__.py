"""Recipes as models of the Language Model Evaluation Harness.

bare      Requests on a recipe that is one bare model, token for token as the harness's `hf` model
decoding  The harness's generation arguments as an agent's `generate` settings
in_order  Run many requests at once, with results in order and a progress bar
model     `CachegraphLM`, the harness's model class
options   The arguments of `--model_args`
player    Requests on a graph: score or write the output agent's reply
tally     Counts of what every edge carried over all requests
"""
