"""What people run: recipes, and the model catalogue. Files only; this module is empty."""
