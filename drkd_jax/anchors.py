"""Anchors: the boxes of one cell, their grid over a map, and which of them lie in the image.

Letters: A anchors, B images, h w one feature map. Grids are NumPy constants: they depend only on
static shapes and become literals of the compiled program.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from drkd_jax.types import Array


def base_anchors(
    size: float | int,
    ratios: Sequence[float | int],
    scales: Sequence[float | int],
    rounded: bool = False,
) -> Float[np.ndarray, "A 4"]:
    """The anchors of one cell, centred at the origin.

    Args:
        size: Side of the square anchor of ratio 1 and scale 1, pixels.
        ratios: Height divided by width.
        scales: Factors on ``size``.
        rounded: Whether corners are rounded to whole pixels, halves to even (torchvision).

    Returns:
        ``[len(ratios) * len(scales), 4]`` xyxy float32, all scales of the first ratio first.

    Source: mmdetection ``models/task_modules/prior_generators/anchor_generator.py``, torchvision
        ``models/detection/anchor_utils.py`` (``size=1`` and its sizes as ``scales``).
    """
    # All in float32 and in this order: torchvision rounds values that are halves (101 / 2).
    height_factors = np.sqrt(np.asarray(ratios, np.float32))
    width_factors = np.float32(1.0) / height_factors
    factors = np.asarray(scales, np.float32)
    widths = (np.float32(size) * width_factors[:, None] * factors[None, :]).reshape(-1)
    heights = (np.float32(size) * height_factors[:, None] * factors[None, :]).reshape(-1)
    boxes = np.stack([-widths, -heights, widths, heights], axis=1) / np.float32(2.0)
    return np.round(boxes) if rounded else boxes


def grid(
    base: Float[np.ndarray, "A_cell 4"],
    map_hw: tuple[int, int],
    stride: int | tuple[int, int],
) -> Float[np.ndarray, "A 4"]:
    """The anchors of every cell of a map; cell (y, x) is centred at (y, x) times the stride.

    Args:
        base: ``[A_cell, 4]`` anchors of one cell.
        map_hw: Height and width of the map, cells.
        stride: Pixels per cell, or (along y, along x) if they differ.

    Returns:
        ``[h * w * A_cell, 4]`` xyxy float32, ordered by y, then x, then the anchor of the cell.
    """
    stride_y, stride_x = (stride, stride) if isinstance(stride, int) else stride
    height, width = map_hw
    y, x = np.meshgrid(
        np.arange(height, dtype=np.float32) * stride_y,
        np.arange(width, dtype=np.float32) * stride_x,
        indexing="ij",
    )
    shifts = np.stack([x, y, x, y], axis=-1).reshape(-1, 1, 4).astype(np.float32)
    return (shifts + base[None].astype(np.float32)).reshape(-1, 4)


def inside(
    anchors: Float[Array, "A 4"],
    sizes: Int[Array, "B 2"],
) -> Bool[Array, "B A"]:
    """Marks the anchors whose centre lies in the image and not in the rest of the canvas.

    Args:
        anchors: ``[A, 4]`` xyxy, pixels.
        sizes: ``[B, 2]`` height and width, pixels: to include an image's own padding, the caller
            rounds its size up.

    Returns:
        ``[B, A]`` bool; all False for an image of size (0, 0).

    Source: mmdetection ``models/task_modules/prior_generators/utils.py``; its detectors with FPN
        set ``allowed_border=-1``, so anchors may extend beyond the image.
    """
    limits = jnp.asarray(sizes)[:, None, ::-1].astype(anchors.dtype)
    # Centres are multiples of a stride up to rounding, which half a pixel absorbs.
    centres = (anchors[None, :, :2] + anchors[None, :, 2:]) * 0.5
    return jnp.all(centres < limits - 0.5, axis=-1)
