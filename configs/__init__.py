"""Recipes: one run a file. What they share is `drkd_jax.recipes`; a wheel has them inside."""
