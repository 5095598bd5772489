"""Group normalisation with a custom gradient.

Letters: B images, h w C one feature map, G groups.

The automatic gradient sums over the map seven times; two sums per channel are enough. Sums first
run over the pixels of each channel, contiguously in memory, and then over the few channels of a
group.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from drkd_jax.types import Array


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def group_norm(
    x: Float[Array, "B h w C"],
    scale: Float[Array, "C"],
    bias: Float[Array, "C"],
    groups: int,
    epsilon: float,
) -> Float[Array, "B h w C"]:
    """Gives every group of channels of an image mean 0 and variance 1; then scale and bias.

    Args:
        x: any float dtype; everything is computed in float32 at least.
        scale: of each channel.
        bias: of each channel.
        groups: number of groups; divides C.
        epsilon: added to the variance.

    Returns:
        ``[B, h, w, C]`` in the dtype of ``x``.

    Source: Wu and He 2018, "Group Normalization", equations 1 to 7.
    """
    return _forward(x, scale, bias, groups, epsilon)[0]


def _forward(
    x: Array, scale: Array, bias: Array, groups: int, epsilon: float
) -> tuple[Array, tuple[Array, ...]]:
    wide = _widened(x)
    mean = _group_mean(_over_pixels(wide), x.shape, groups)
    variance = _group_mean(_over_pixels(jnp.square(wide - mean)), x.shape, groups)
    inverse = jax.lax.rsqrt(variance + epsilon)
    factor = inverse * scale
    out = wide * factor + (bias - mean * factor)
    return out.astype(x.dtype), (x, scale, mean, inverse)


def _backward(
    groups: int, epsilon: float, saved: tuple[Array, ...], gradient: Array
) -> tuple[Array, Array, Array]:
    x, scale, mean, inverse = saved
    centred, wide = _widened(x) - mean, _widened(gradient)
    of_bias = _over_pixels(wide)
    of_scale = _over_pixels(wide * centred) * inverse
    # Normalising removes a constant and a scale, so the gradient has no component along a constant
    # or along the normalised map.
    constant = inverse * _group_mean(scale * of_bias, x.shape, groups)
    along = jnp.square(inverse) * _group_mean(scale * of_scale, x.shape, groups)
    of_x = wide * (inverse * scale) - centred * along - constant
    return of_x.astype(x.dtype), of_scale.sum(axis=(0, 1, 2)), of_bias.sum(axis=(0, 1, 2))


group_norm.defvjp(_forward, _backward)


def _over_pixels(x: Array) -> Any:
    """The sum of each channel: ``[B, 1, 1, C]``."""
    return x.sum(axis=(1, 2), keepdims=True)


def _group_mean(sums: Array, shape: tuple[Any, ...], groups: int) -> Any:
    """The mean of each channel's group, from sums over pixels: ``[B, 1, 1, C]``."""
    B, h, w, C = shape
    per_group = C // groups
    mean = sums.reshape(B, 1, 1, groups, per_group).sum(axis=4) / (h * w * per_group)
    return jnp.repeat(mean, per_group, axis=3)


def _widened(x: Array) -> Any:
    return x.astype(jnp.promote_types(jnp.float32, x.dtype))
