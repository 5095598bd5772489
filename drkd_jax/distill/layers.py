"""Building blocks of the relation modules, and sums that leave out padding.

Letters: B images, h w a map, P its pixels (h * w), C channels.

Weights and biases are initialised as in PyTorch (uniform within 1/sqrt(inputs)), since the author's
modules are. Products accumulate in float32 at least, whatever the features' dtype.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float, Int, Shaped

from drkd_jax.types import Array

FloatMap = Float[Array, "B h w C"]
BoolMap = Bool[Array, "B h w"]  # the valid pixels
HIGHEST = jax.lax.Precision.HIGHEST


def uniform(key: jax.Array, shape: tuple[int, ...], inputs: int) -> jax.Array:
    """Uniform numbers within 1/sqrt(inputs). Source: PyTorch, torch/nn/modules/linear.py."""
    bound = inputs**-0.5
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def accumulator(*arrays: Shaped[Array, "..."]) -> jnp.dtype:
    """The dtype for sums of these arrays: float32, or float64 if one of them is float64."""
    return jnp.result_type(jnp.float32, *(array.dtype for array in arrays))


def product(
    subscripts: str, left: Float[Array, "..."], right: Float[Array, "..."]
) -> Float[Array, "..."]:
    """An einsum at full precision, accumulated and returned in float32 at least."""
    return jnp.einsum(
        subscripts, left, right, precision=HIGHEST, preferred_element_type=accumulator(left, right)
    )


class LinearMap(nnx.Module):
    """x W over the last axis, no bias."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(uniform(rngs.params(), (inputs, outputs), inputs))

    def __call__(self, x: Float[Array, "... C"]) -> Float[Array, "... E"]:
        """Args: x [..., C]. Returns: [..., E] in x's own dtype."""
        return jnp.einsum("...c,ce->...e", x, self.kernel[...].astype(x.dtype), precision=HIGHEST)


class Linear(LinearMap):
    """x W + b over the last axis: a linear layer, or a 1x1 convolution of maps."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        super().__init__(inputs, outputs, rngs=rngs)
        self.bias = nnx.Param(uniform(rngs.params(), (outputs,), inputs))

    def __call__(self, x: Float[Array, "... C"]) -> Float[Array, "... E"]:
        """Args: x [..., C]. Returns: [..., E] in x's own dtype."""
        return super().__call__(x) + self.bias[...].astype(x.dtype)


def pixel_mask(
    sizes: Int[Array, "B 2"], image_valid: Bool[Array, "B"], stride: int, shape: tuple[int, ...]
) -> Bool[Array, "B h w"]:
    """The pixels of a map that lie on the image, not on its padding.

    Args:
        sizes: height and width of each image on the canvas, pixels.
        image_valid: False for images that only fill up the batch: they have no valid pixels.
        stride: canvas pixels per map pixel.
        shape: height and width of the map.

    Returns:
        True where any part of the map pixel's cell belongs to the image.
    """
    rows = jnp.arange(shape[0])[None, :] * stride < sizes[:, :1]
    columns = jnp.arange(shape[1])[None, :] * stride < sizes[:, 1:]
    return rows[:, :, None] & columns[:, None, :] & image_valid[:, None, None]


def safe_sqrt(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Square root with gradient 0 at 0, as in `torch.dist` (JAX's own gives NaN)."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)


def safe_ratio(sums: Float[Array, "..."], counts: Shaped[Array, "..."]) -> Float[Array, "..."]:
    """Divides sums by counts; 0, with gradient 0, where the count is 0."""
    positive = counts > 0
    return jnp.where(positive, sums / jnp.where(positive, counts, 1), 0)


def count_images(mask: BoolMap) -> Int[Array, ""]:
    """How many images of the batch have a valid pixel."""
    return mask.any((1, 2)).sum()


def squares(s: FloatMap, t: FloatMap, mask: BoolMap) -> Float[Array, ""]:
    """Sum of (t - s)^2 over valid pixels and channels, in float32 at least."""
    dtype = accumulator(s, t)
    off = jnp.where(mask[..., None], t.astype(dtype) - s.astype(dtype), 0)
    return (off * off).sum()


def half_mean_square(s: FloatMap, t: FloatMap, mask: BoolMap) -> Float[Array, ""]:
    """Half the mean of (t - s)^2 over valid pixels and channels; 0 without any."""
    total = squares(s, t, mask)
    # A float: large batches of fine maps have more elements than a 32-bit integer can count.
    return safe_ratio(total, 2 * mask.sum().astype(total.dtype) * t.shape[-1])
