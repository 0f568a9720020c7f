"""Agents whose model runs on this machine: prefill, graft, fuse, decode.

ablation      Wrong caches on purpose
agent         An agent whose model runs on this machine
align_prompt  One prompt, read by a receiver and its sharers
decode        Writing a reply behind what was read, and keeping its cache where an edge hands it on
graft         What the edges graft into one prompt
inbox         What the edges brought for one turn, by sender, and what became of it
memory        An agent of this machine in a session
prefill       Reading a prompt
score         How likely a model finds given replies
"""
