"""Stored runs that outlive their request: start, watch, cancel and answer them with the same key.

board     The runs of this server, live and stored
details   A run as JSON for clients
events    The events of a run, as server-sent events
live_run  A run of this process, with its events
prompts   The prompt of a turn, for viewers
replay    The events of a stored run, rebuilt from its turns
routes    /runs
"""
