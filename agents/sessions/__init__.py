"""Sessions: conversations that agents remember from run to run.

session         A conversation that a run continues
session_caches  The KV cache of a conversation
session_files   Conversations as files in the data folder
spec            The sessions' slice of a recipe
"""
