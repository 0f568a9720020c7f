"""Agents that are Python functions.

agent.py       one call a turn; what it returns becomes text and data
arguments.py   inputs and messages to what the function's parameters ask for
find.py        the function that a recipe names
"""
