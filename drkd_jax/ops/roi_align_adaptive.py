"""RoIAlign with as many samples a bin as the box is large, as two small products.

Letters: B pictures, h w C a map, R regions, S bins along a side, K samples of a bin along a side.

A bin's samples form a grid, and a bilinear weight is a weight along y times a weight along x. So
the mean over the samples is exactly (rows of weights) x map x (columns of weights), and a number of
samples that changes from box to box is only a mask on the way to these weights.

Cost: R S h w C products a picture for the first of the two, whatever the boxes' sizes: right for
few bins and the ground truth's boxes (3x3), wrong for 512 proposals at 7x7, which `roi_align.py`
gathers at R S^2 4 K^2 C.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from drkd_jax.types import Array


def _axis_weights(
    low: Float[Array, "B R"],
    high: Float[Array, "B R"],
    size: int,
    limit: Float[Array, "B"],
    bins: int,
    aligned: bool,
) -> Float[Array, "B R S n"]:
    """Weights of the map's rows (or columns) in each bin of each box.

    Args:
        low: first edge of the boxes, in map pixels.
        high: second edge.
        size: n, length of the map along this axis.
        limit: length of each picture's own part of it.
        bins: S.
        aligned: boxes may be smaller than a map pixel (else they are widened to one).
    """
    length = high - low
    if not aligned:
        length = jnp.maximum(length, 1)
    bin_length = length / bins
    # A box inside of the map has no more samples than this; one beyond it is sampled coarser.
    most = -(-(size + 1) // bins) + 1
    samples = jnp.clip(jnp.ceil(bin_length), 0, most)
    divisor = jnp.maximum(samples, 1)
    k = jnp.arange(most, dtype=low.dtype)
    place = (k + 0.5) * (bin_length / divisor)[..., None]  # B R K
    start = low[..., None] + jnp.arange(bins, dtype=low.dtype) * bin_length[..., None]  # B R S
    limit = limit[:, None, None, None]
    at = start[..., None] + place[..., None, :]  # B R S K
    # Nothing further out than one pixel counts; up to there the edge pixel does.
    counts = (k < samples[..., None])[..., None, :] & (at >= -1) & (at <= limit)
    at = jnp.clip(at, 0, limit - 1)
    cell = jnp.arange(size, dtype=low.dtype)
    hat = jnp.maximum(1 - jnp.abs(at[..., None] - cell), 0)  # B R S K n
    return jnp.where(counts[..., None], hat, 0).sum(-2) / divisor[..., None, None]


def roi_align_adaptive(
    features: Float[Array, "B h w C"],
    boxes: Float[Array, "B R 4"],
    stride: float | int,
    output_size: int,
    aligned: bool = False,
    sizes: Int[Array, "B 2"] | None = None,
) -> Float[Array, "B R S S C"]:
    """Cuts boxes out of one map, each bin the mean of ceil(bin side) bilinear samples an axis.

    Args:
        features: one map of each picture, any float dtype; sums are in float32 at least.
        boxes: xyxy, canvas pixels. Finite garbage gives finite numbers.
        stride: canvas pixels per map pixel.
        output_size: S, bins along each side.
        aligned: shift by half a map pixel, and leave boxes under a map pixel as they are.

        sizes: height and width of the pictures, canvas pixels: each map then ends where its
            picture does, and the padding beyond it is not read. None: the whole canvas.

    Returns:
        The regions, in the map's dtype. No gradient goes to the boxes.

    Source: torchvision/csrc/ops/cpu/roi_align_kernel.cpp with sampling_ratio <= 0.
    """
    wide = jnp.result_type(jnp.float32, features.dtype)
    boxes = jax.lax.stop_gradient(jnp.asarray(boxes, wide)) / stride - (0.5 if aligned else 0.0)
    height, width = features.shape[1:3]
    whole = jnp.asarray((height, width), wide)
    limits = jnp.broadcast_to(whole, (features.shape[0], 2))
    if sizes is not None:
        limits = jnp.clip(jnp.ceil(jnp.asarray(sizes, wide) / stride), 1, whole)
    how = output_size, aligned
    rows = _axis_weights(boxes[..., 1], boxes[..., 3], height, limits[:, 0], *how)
    columns = _axis_weights(boxes[..., 0], boxes[..., 2], width, limits[:, 1], *how)
    highest = jax.lax.Precision.HIGHEST
    strips = jnp.einsum("brsh,bhwc->brswc", rows, features.astype(wide), precision=highest)
    regions = jnp.einsum("brtw,brswc->brstc", columns, strips, precision=highest)
    return regions.astype(features.dtype)
