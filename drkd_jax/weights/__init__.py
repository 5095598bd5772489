"""Loads models from files and folders (`load`), including those of other libraries."""

from drkd_jax.weights.loaded import Objects, Weights
from drkd_jax.weights.opening import load

__all__ = ["Objects", "Weights", "load"]
