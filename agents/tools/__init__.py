"""Tools of agents: servers that speak the Model Context Protocol, and the loop of calls and results.

spec.py      what a recipe says of them
server.py    one server, connected, in a thread of its own; toolbox.py, the servers of one graph
belt.py      the tools that one agent has, and one call of them
calls.py     from a model's reply to the calls in it
rounds.py    replies and results in turn, for a model of this machine
"""
