"""Drawings of recipes and runs: text, Mermaid, SVG.

layout      Place boxes and lines
render      Draw a recipe
render_run  Draw a run
run_view    A run as drawn, from a result or from the store
svg         Write boxes and lines as a standalone SVG
"""
