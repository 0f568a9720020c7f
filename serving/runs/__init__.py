"""Runs that outlive their request: begun, watched, cancelled and answered by anybody with the same key.

board     The runs of this server: at work, and in the store
details   A run as clients see it
events    The events of a run, as server-sent events
live_run  A run of this process, with its events
routes    /runs
"""
