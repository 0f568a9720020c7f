"""Data sets from files or the hub, mapped to a graph's inputs.

dataset   Read data sets from JSON Lines, JSON, CSV, the Hugging Face hub, or Python
examples  Map a data set's columns to inputs and answers; every example is checked before the first run
"""
