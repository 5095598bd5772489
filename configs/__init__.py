"""Recipes, one run per file. Their common code is `drkd_jax.recipes`; a wheel includes them."""
