"""RoIAlign over the levels of a pyramid: fixed samples, gathered from all levels at once.

Letters: B pictures, R regions, L levels, h w C one feature map, S bins along one axis.

Every region reads its own level only. The levels lie behind one another in one flat array, so one
index addresses any pixel of any level, and the cost does not depend on how many levels there are.
The sums over the samples of a bin and over the four corners of a sample are one loop of gathers,
each as large as the output: the samples themselves never exist in memory.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from drkd_jax import boxes as box_ops
from drkd_jax.types import Array

# Coordinates beyond this (pixels) are no pictures; the limit keeps every product finite.
_FARTHEST = 1e6


class _Axis(NamedTuple):
    """Where the samples of one axis read: lower and upper pixel, and the weight of each."""

    pixels: tuple[Array, Array]  # int32 [B, R, S, samples]
    weights: tuple[Array, Array]  # float32, 0 for samples outside of the map


def _axis(low: Array, high: Array, size: Array, bins: int, samples: int, least: float) -> _Axis:
    """Bilinear reading along one axis, in pixels of the map; ``[B, R]`` each."""
    width = jnp.maximum(high - low, least) if least > 0.0 else high - low
    steps = (np.arange(bins * samples, dtype=np.float32) + 0.5) / (bins * samples)
    at = low[..., None] + width[..., None] * steps
    size = size[..., None]
    inside = (at >= -1.0) & (at <= size)
    at = jnp.clip(at, 0.0, size - 1)
    lower = jnp.floor(at)
    share = at - lower
    upper = jnp.minimum(lower + 1, size - 1)
    weights = jnp.where(inside, 1.0 - share, 0.0), jnp.where(inside, share, 0.0)

    def split(x: Array, dtype: Any) -> Array:
        return x.reshape(*x.shape[:-1], bins, samples).astype(dtype)

    return _Axis(
        (split(lower, jnp.int32), split(upper, jnp.int32)),
        (split(weights[0], jnp.float32), split(weights[1], jnp.float32)),
    )


def _corners(y: _Axis, x: _Axis, base: Array, row: Array, samples: int) -> tuple[Array, Array]:
    """All readings of a bin: flat indices and weights, ``[readings, B, R, S, S]``."""
    indices, weights = [], []
    base, row = base[..., None, None], row[..., None, None]
    for i in range(samples):
        for j in range(samples):
            for py, wy in zip(y.pixels, y.weights, strict=True):
                for px, wx in zip(x.pixels, x.weights, strict=True):
                    indices.append(base + py[..., i][..., :, None] * row + px[..., j][..., None, :])
                    weights.append(wy[..., i][..., :, None] * wx[..., j][..., None, :])
    return jnp.stack(indices), jnp.stack(weights) / (samples * samples)


def _read_one(flat: Array, indices: Array) -> Array:
    return jax.vmap(lambda p, at: p.at[at].get(mode="promise_in_bounds"))(flat, indices)


@jax.custom_vjp
def _read(flat: Array, indices: Array, weights: Array) -> Array:
    """Weighted sum of readings: ``[B, P, C]`` by ``[readings, B, R, S, S]``, float32."""
    total = jnp.zeros((*indices.shape[1:], flat.shape[-1]), jnp.float32)
    for at, weight in zip(indices, weights, strict=True):
        total += weight[..., None] * _read_one(flat, at).astype(jnp.float32)
    return total


def _read_forward(flat: Array, indices: Array, weights: Array) -> tuple[Array, Any]:
    empty = jnp.zeros((flat.shape[1], 0), flat.dtype)  # carries the shape and the dtype only
    return _read(flat, indices, weights), (empty, indices, weights)


def _read_backward(saved: Any, gradient: Array) -> tuple[Array, None, None]:
    # One float32 buffer that every reading adds to in place; plain differentiation makes a
    # buffer as large as the whole pyramid for each reading.
    empty, indices, weights = saved
    buffer = jnp.zeros((gradient.shape[0], empty.shape[0], gradient.shape[-1]), jnp.float32)

    def add(buffer: jax.Array, reading: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        at, weight = reading
        updates = weight[..., None] * gradient
        return jax.vmap(lambda b, i, u: b.at[i].add(u, mode="promise_in_bounds"))(
            buffer, at, updates
        ), None

    buffer, _ = jax.lax.scan(add, buffer, (indices, weights))
    return buffer.astype(empty.dtype), None, None


_read.defvjp(_read_forward, _read_backward)


@partial(jax.named_call, name="roi_align")
def roi_align(
    maps: tuple[Float[Array, "B _h _w C"], ...],
    boxes: Float[Array, "B R 4"],
    levels: Int[Array, "B R"],
    strides: tuple[int, ...],
    output_size: int = 7,
    sampling_ratio: int = 2,
    aligned: bool = True,
) -> Float[Array, "B R S S C"]:
    """Cuts every region out of its level as a grid of bins.

    A bin is the mean of ``sampling_ratio`` squared bilinear samples. A sample more than a pixel
    outside of the map is 0; one nearer than that reads the edge.

    Args:
        maps: One ``[B, h, w, C]`` for each level, all of one dtype.
        boxes: ``[B, R, 4]`` xyxy, pixels of the canvas. Rows that are not finite give some finite
            values.
        levels: ``[B, R]`` index into ``maps``; clipped to its range.
        strides: Canvas pixels per map pixel, for each level.
        output_size: Bins along each axis, S.
        sampling_ratio: Samples along each axis of a bin.
        aligned: Whether pixel centres lie at half coordinates (mmdetection); otherwise at whole
            ones, and no region is smaller than one map pixel (torchvision's default).

    Returns:
        ``[B, R, S, S, C]`` in the dtype of the maps; sums are float32. The gradient goes to the
        maps, not to the boxes.

    Source: He et al., Mask R-CNN, section 3; torchvision ``csrc/ops/cpu/roi_align_kernel.cpp``.
    """
    heights = np.asarray([m.shape[1] for m in maps], np.int32)
    widths = np.asarray([m.shape[2] for m in maps], np.int32)
    starts = np.concatenate([[0], np.cumsum(heights * widths)[:-1]]).astype(np.int32)
    flat = jnp.concatenate([jnp.reshape(m, (m.shape[0], -1, m.shape[3])) for m in maps], axis=1)

    levels = jnp.clip(levels, 0, len(maps) - 1)
    scales = jnp.asarray([1.0 / stride for stride in strides], jnp.float32)[levels]
    boxes = jax.lax.stop_gradient(jnp.asarray(boxes, jnp.float32))
    boxes = jnp.clip(jnp.nan_to_num(boxes), -_FARTHEST, _FARTHEST)
    x0, y0, x1, y1 = jnp.moveaxis(boxes * scales[..., None] - (0.5 if aligned else 0.0), -1, 0)
    rows = jnp.asarray(widths)[levels]
    least = 0.0 if aligned else 1.0
    y = _axis(y0, y1, jnp.asarray(heights)[levels], output_size, sampling_ratio, least)
    x = _axis(x0, x1, rows, output_size, sampling_ratio, least)
    indices, weights = _corners(y, x, jnp.asarray(starts)[levels], rows, sampling_ratio)
    return _read(flat, indices, weights).astype(flat.dtype)


def region_levels(
    boxes: Float[Array, "*N 4"],
    min_level: int = 2,
    max_level: int = 5,
    canonical: float | int = 56.0,
    convention: Literal["mmdet", "torchvision"] = "mmdet",
) -> Int[Array, "*N"]:
    """The level that each region is read from: one coarser for each doubling of its side.

    Args:
        boxes: ``[..., 4]`` xyxy, pixels.
        min_level: Name of the finest level (2 for P2).
        max_level: Name of the coarsest level.
        canonical: Regions of this side (root of the area, pixels) up to twice of it are read from
            the finest level, as are all smaller ones.
        convention: Where the guard against rounding stands: ``floor(log2(side / 56 + 1e-6))``
            ("mmdet") or ``floor(4 + log2(side / 224) + 1e-6)`` ("torchvision").

    Returns:
        ``[...]`` int32, 0 for ``min_level``.

    Source: Lin et al., FPN, equation 1; mmdetection
        ``models/roi_heads/roi_extractors/single_level_roi_extractor.py``; torchvision
        ``ops/poolers.py``.
    """
    sides = jnp.sqrt(jax.lax.stop_gradient(box_ops.area(jnp.nan_to_num(boxes))))
    if convention == "mmdet":
        levels = jnp.floor(jnp.log2(sides / canonical + 1e-6))
    else:
        # Four octaves above 0 as torchvision writes it: the sum rounds differently otherwise.
        reference = canonical * 2.0 ** (4 - min_level)
        levels = jnp.floor(4.0 + jnp.log2(sides / reference) + 1e-6) - min_level
    return jnp.clip(levels, 0, max_level - min_level).astype(jnp.int32)
