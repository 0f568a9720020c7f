"""Comparison reports of a folder, opened in the studio.

folder  The reports of a folder, and tickets to view them
routes  /reports
"""
