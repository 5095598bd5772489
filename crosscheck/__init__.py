"""`python -m drkd_jax crosscheck`: every formula of the project against PyTorch."""

from crosscheck.command import main

__all__ = ["main"]
