"""A graph unit as an affine map of the channels of each image, found from the map's Gram block.

The unit's ReLU acts only on the small node matrix, and nodes and batch statistics are sums over
pixels, so the feature map itself need not be read again (gram_distance.py).

Letters: B images, C channels, D channels after the affine map, S states, M nodes.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from drkd_jax.distill.graph_unit import BN_EPS, GraphUnit, Moments, grouped
from drkd_jax.distill.layers import product, safe_ratio
from drkd_jax.types import Array


class Unit(NamedTuple):
    """The parameters and running statistics of a graph unit, in the Gram matrix's dtype."""

    states: Float[Array, "C S"]
    states_bias: Float[Array, "S"]
    projection: Float[Array, "C M"]
    projection_bias: Float[Array, "M"]
    adjacency: Float[Array, "M M"]
    adjacency_bias: Float[Array, "M"]
    mix: Float[Array, "S S"]
    extend: Float[Array, "S C"]
    scale: Float[Array, "C"]
    bias: Float[Array, "C"]
    mean: Float[Array, "C"]
    variance: Float[Array, "C"]


class Sums(NamedTuple):
    """Of one map: the sum of products about the mean, the mean, and the number of pixels."""

    covariance: Float[Array, "B C C"]
    mean: Float[Array, "B C"]
    count: Float[Array, "B"]


class Affine(NamedTuple):
    """x -> x kernel + bias, with a kernel and bias per image."""

    kernel: Float[Array, "B C D"]
    bias: Float[Array, "B D"]


class Embedding(NamedTuple):
    """phi as an affine map, covariance times its kernel, phi's mean, and the batch moments."""

    affine: Affine
    spread: Float[Array, "B C C"]
    mean: Float[Array, "B C"]
    moments: Moments


def numbers(unit: GraphUnit, dtype: jnp.dtype) -> Unit:
    """The parameters and running statistics that the Gram form computes with."""
    parts = (
        *(unit.state.kernel, unit.state.bias, unit.projection.kernel, unit.projection.bias),
        *(unit.adjacency.kernel, unit.adjacency.bias, unit.mix, unit.extend.kernel),
        *(unit.norm.scale, unit.norm.bias, unit.norm.mean, unit.norm.variance),
    )
    return Unit(*(part[...].astype(dtype) for part in parts))


def embedding(unit: Unit, sums: Sums, *, normalize: bool, groups: int, train: bool) -> Embedding:
    """The graph unit as an affine map, from the Gram block of its feature map.

    Args:
        unit: the graph unit.
        sums: the sums of its feature map.
        normalize: see `GraphUnit`.
        groups: how many groups the batch is split into; each has its own statistics.
        train: use batch statistics; otherwise the running ones.
    """
    covariance, mean, count = sums
    images, channels = mean.shape
    # V + V A^T of the graph convolution acts on the nodes, so it can be applied to the projection.
    talk = unit.adjacency + jnp.eye(len(unit.adjacency), dtype=mean.dtype)
    talking = product("cm,mk->ck", unit.projection, talk)
    # V = S^T B with S = x W_s + b_s and B = x W_b + b_b, summed over pixels.
    rest = product("bc,cm->bm", mean, talking) + product("m,mk->k", unit.projection_bias, talk)
    rest = count[:, None] * rest
    way = jnp.swapaxes(product("bcd,dm->bcm", covariance, talking), 1, 2)
    way = way + rest[:, :, None] * mean[:, None]
    nodes = product("bmc,cs->bms", way, unit.states) + rest[:, :, None] * unit.states_bias
    if normalize:
        nodes = nodes / jnp.maximum(count, 1)[:, None, None]
    nodes = jax.nn.relu(nodes + unit.adjacency_bias[:, None])
    # W_g and W_e, over the states and back to channels; then B, back over the projection.
    answer = product("bms,sc->bmc", nodes, product("st,tc->sc", unit.mix, unit.extend))
    # One product per image: for a joint one the compiler would first transpose `answer`.
    way_back = jnp.broadcast_to(unit.projection, (images, *unit.projection.shape))
    kernel = product("bcm,bmd->bcd", way_back, answer)
    bias = product("m,bmd->bd", unit.projection_bias, answer)
    spread = product("bcd,bde->bce", covariance, kernel)
    branch_mean = product("bc,bcd->bd", mean, kernel) + bias
    moments = Moments(unit.mean[None], unit.variance[None], jnp.ones(1, mean.dtype))
    if train:
        moments = _branch_moments((spread * kernel).sum(1), branch_mean, count, groups)
    gain = unit.scale * jax.lax.rsqrt(moments.variance + BN_EPS)
    shift = unit.bias - moments.mean * gain
    each = images // gain.shape[0]
    gain, shift = jnp.repeat(gain, each, axis=0), jnp.repeat(shift, each, axis=0)
    identity = jnp.eye(channels, dtype=mean.dtype)
    return Embedding(
        Affine(identity + kernel * gain[:, None], bias * gain + shift),
        covariance + spread * gain[:, None],
        mean + branch_mean * gain + shift,
        moments,
    )


def _branch_moments(
    within: Float[Array, "B C"], mean: Float[Array, "B C"], count: Float[Array, "B"], groups: int
) -> Moments:
    """Mean and variance over the pixels of each group.

    Args:
        within: sum of squares about the image's own mean.
        mean: mean of each image.
        count: pixels of each image.
        groups: as above.
    """
    counts, means = grouped(count, groups)[..., None], grouped(mean, groups)
    number = counts.sum(1)
    middle = safe_ratio((counts * means).sum(1), number)
    between = (counts * (means - middle[:, None]) ** 2).sum(1)
    # A sum of squares is below 0 only by rounding, which would make the square root NaN.
    inner = jnp.maximum(grouped(within, groups).sum(1), 0)
    return Moments(middle, safe_ratio(inner + between, number), number[:, 0])
