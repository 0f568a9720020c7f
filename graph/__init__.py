"""Graphs: recipes, plans, runs, results.

builder      A recipe's value while it is being built in Python
data/        Data sets
draw/        Drawings of recipes and runs
graph        The graph as Python sees it
plan/        Plans
recipe/      Recipes
run/         Runs
run_warning  What a run or a recipe warns of
store/       The run store
tracing/     OpenTelemetry spans and metrics of runs, and traces for Chrome and Perfetto
"""
