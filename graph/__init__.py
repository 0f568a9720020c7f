"""Graphs: recipes, plans, runs, results.

builder      Build a recipe step by step in Python
clusters     Copies of a graph whose models run on clusters
data/        Data sets, mapped to a graph's inputs
definition   The declared graph: loading, building, checking, writing
draw/        Drawings of recipes and runs
graph        The Graph class
plan/        The order of agents, edge routes, dataflow
recipe/      Recipes: YAML, types, checks
run/         One execution of a graph, its events and its result
run_warning  The warning type of recipes and runs
store/       The run store
topology/    Graph algorithms over names and edges
tracing/     OpenTelemetry spans and metrics of runs, and traces for Chrome and Perfetto
"""
