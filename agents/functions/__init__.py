"""Agents that are Python functions.

agent            Calls the function once a turn
arguments        Match a function's parameters with inputs and replies
import_function  Import a function by the name that a recipe gives it
spec             The agent kind `function`
"""
