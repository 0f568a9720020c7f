"""Drawings of recipes and runs: text, Mermaid, SVG.

layout      Place boxes and lines
render      Draw a recipe
render_run  Draw a run
run_view    One view of a run for drawing, made of a result or of the store
svg         Write boxes and lines as a standalone SVG
"""
