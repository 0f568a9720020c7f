"""Fusers and translators from data.

spec.py        what a training recipe says; data_spec.py, what it says of rows. No torch
load.py        a training recipe from YAML; default.py, one for an edge of a graph
data.py        rows to examples: columns, chats, what is held back to judge by
pair.py        the two ends of the edge that learns, with their models
lesson.py      one example as both models read it, by the code that runs the graph
caches.py      what the frozen models make of prompts
branches.py    replies behind a cache that carries gradients, all in one row
learner.py     what learns: graft.py, a translator; fuse.py, a fuser; joint.py, both; create.py, which of them
ridge.py       a translator's start in closed form
loss.py        what is minimised
steps.py       which rows a step learns from
loop.py        steps, judgements, checkpoints
judge.py       accuracy and the gap to another text's cache
checkpoint.py  where a training stands, on disk
watch.py       the log, and who follows it
plan.py        what it will take: the dry run
publish.py     the finished fuser and its card; place.py, where it goes
train.py       `train`: all of it
"""
