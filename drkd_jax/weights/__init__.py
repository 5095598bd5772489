"""Models out of files and folders: `load`. Their names and layouts in other libraries."""

from drkd_jax.weights.loaded import Objects, Weights
from drkd_jax.weights.opening import load

__all__ = ["Objects", "Weights", "load"]
