"""A comparison as one HTML file that needs nothing else: no network, no fonts, and no script to be read."""

from .write import needs, write_report

__all__ = ["needs", "write_report"]
