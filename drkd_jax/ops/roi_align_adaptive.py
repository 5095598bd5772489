"""RoIAlign of one map with as many samples a bin as the box is large.

Letters: B pictures, h w C a map, R regions, S bins along a side.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Float, Int

from drkd_jax.ops.roi_align import roi_align
from drkd_jax.types import Array


def roi_align_adaptive(
    features: Float[Array, "B h w C"],
    boxes: Float[Array, "B R 4"],
    stride: float | int,
    output_size: int,
    aligned: bool = False,
    sizes: Int[Array, "B 2"] | None = None,
) -> Float[Array, "B R S S C"]:
    """`roi_align` with one level and ``ceil(bin side)`` bilinear samples an axis.

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
    """
    levels = jnp.zeros(boxes.shape[:2], jnp.int32)
    return roi_align((features,), boxes, levels, (stride,), output_size, 0, aligned, sizes)
