"""Recipes, training recipes, fusers and the model catalogue. This module holds no code."""
