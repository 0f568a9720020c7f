"""One model on one device.

models/       from a model's name to a folder on this disk
load.py       from the folder to a model, checked before it is trusted with caches; text_model.py, the part that reads
info.py       what is known of a model; shapes.py, the shape of a layer's keys and values
verdict_cache.py  what the check found, kept from one start to the next; kept_json.py, how
file_sizes.py how large files of its folder may be that are read whole
tokenizer_load.py  from the folder to a tokenizer
kv.py         KV caches as values; attention.py and forward.py, rows of different lengths in one pass
rope.py       moving keys to other positions
engine.py     requests from any event loop; worker.py, the thread that serves them; job.py, one request at work
scheduler.py  who runs next; account.py, on whose behalf
rows.py       who has memory; memory.py, what is counted against the budget; swap.py, tails that are elsewhere meanwhile
prefixes.py   prompts that were read before
machine.py    what this machine has for models
tokens.py     text to tokens and back; control_tokens.py, which of them steer a model, and values that make none
chat.py       chat templates with the place of every content; chat_rules.py, the roles they take; hiding.py, names they
              don't see
sampling.py   from logits to tokens
json_schema.py  which schemas replies can be held to; closed_schema.py, what is held to of them; finite_schema.py, those
              that never end; grammar.py, replies that obey one; reply_text.py, patterns and formats of replies
native.py     models whose cache can't travel
pool.py       each model loaded once, for as long as somebody uses it
"""
