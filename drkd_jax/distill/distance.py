"""What the plain and the Gram form of the pixel relation both answer.

Letters: B pictures, P pixels of a map, C channels.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Bool, Float

from drkd_jax.distill.layers import accumulator, safe_ratio
from drkd_jax.types import Array


class Distance(NamedTuple):
    """What one level has to say, per picture: sums over valid pixels and channels."""

    squares: Float[Array, "B"]  # of phi_t - f(phi_s)
    energy: Float[Array, "B"]  # of phi_t
    spread: Float[Array, "B"]  # of phi_t about its mean over the pixels
    input_energy: Float[Array, "B"]  # of t
    input_spread: Float[Array, "B"]  # of t about its mean over the pixels
    count: Float[Array, "B"]  # valid pixels


def energies(
    x: Float[Array, "B P C"], mask: Bool[Array, "B P"]
) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
    """Sum of squares over valid pixels, and the same about the mean over the pixels."""
    x = jnp.where(mask[:, :, None], x.astype(accumulator(x)), 0)
    mean = safe_ratio(x.sum(1), mask.sum(1)[:, None])
    off = jnp.where(mask[:, :, None], x - mean[:, None], 0)
    return (x * x).sum((1, 2)), (off * off).sum((1, 2))
