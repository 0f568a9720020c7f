"""Fusers from data."""
