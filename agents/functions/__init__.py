"""Agents that are Python functions.

agent            An agent that is a Python function
arguments        What a function's parameters ask for, and making inputs and messages into it
import_function  From what a recipe calls a function to the function, and back
"""
