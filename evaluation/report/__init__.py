"""Write a comparison as one self-contained HTML file: no network, no fonts, readable without scripts.

charts     Charts of quality, latency, time and layers
drawing    matplotlib figures as inline SVG
latency    Medians of seconds with their intervals
layers     Gates and residuals of fusers per layer
page       The HTML page
questions  Examples with every variant's reply
tables     Tables of the numbers
write      The file
"""

from .write import needs, write_report

__all__ = ["needs", "write_report"]
