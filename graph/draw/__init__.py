"""Drawings of recipes and runs: text, Mermaid, SVG.

layout      Where boxes and lines go when a graph is drawn
render      A recipe for people to look at
render_run  A run for people to look at
run_view    What a run did, agent by agent and edge by edge, whether its result or the store tells of it
svg         Boxes and lines as an SVG that stands on its own
"""
