"""How agents talk.

spec.py       what a recipe says of an edge; message.py, what travels on it
create.py     from an edge and its two ends to a route: what can travel there, or why it can't
cache/        align, rotate, graft, fuse
fusers/       the trained networks that join two models' caches, and their folders
"""
