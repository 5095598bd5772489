"""Recipes: one run a file, and what they share in `common`."""
