"""`python -m drkd_jax crosscheck`: every formula of the project against PyTorch."""

from drkd_jax.cli.crosscheck.command import main

__all__ = ["main"]
