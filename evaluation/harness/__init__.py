"""Recipes as models of the Language Model Evaluation Harness, so that its tasks run on graphs of agents."""
