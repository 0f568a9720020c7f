"""What every folder may use: one thing a file, and nothing here knows the others.

schemas/   check values against JSON Schemas that strangers wrote
"""
