"""What agents remember from run to run.

spec.py      what a recipe says of it
session.py   a conversation, taken by one run at a time; what one agent remembers in it
folder.py    conversations as files: names, locks, the text
caches.py    the KV cache of a conversation, on disk and bound to its model and text
"""
