"""Data sets: rows from files or the hub, mapped to a graph's inputs.

dataset   Rows of a data set from a JSON Lines, JSON or CSV file, from the Hugging Face hub, or from Python; nothi
examples  From a data set's columns to what a graph is given and what would be right; every row is checked before
"""
