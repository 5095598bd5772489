"""Boxes: areas, overlaps, regression coding, clipping, mirroring.

Letters: B images, N M boxes. Boxes are ``xyxy``, absolute pixels, float32: left, top, right,
bottom, with no added pixel (a box from 0 to 1 has side 1).
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jaxtyping import Float, Int

from drkd_jax.types import Array

#: Boxes as left, top, right, bottom.
Sides = tuple[Array, Array, Array, Array]

#: Upper limit of a log side ratio: one regression enlarges a box at most by 1000 / 16.
MAX_LOG_RATIO = math.log(1000.0 / 16.0)

# Boxes with a shorter side (pixels) are degenerate: nothing is regressed from or to them.
_SMALLEST_SIDE = 1e-6


def area(boxes: Float[Array, "*N 4"]) -> Float[Array, "*N"]:
    """Area of each box.

    Args:
        boxes: ``[..., 4]`` xyxy, pixels.

    Returns:
        ``[...]`` square pixels; 0 where a side is not positive.
    """
    sides = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0.0)
    return sides[..., 0] * sides[..., 1]


def pairwise_iou(a: Float[Array, "*L N 4"], b: Float[Array, "*L M 4"]) -> Float[Array, "*L N M"]:
    """Intersection over union of every box of ``a`` with every box of ``b``.

    Args:
        a: ``[..., N, 4]`` xyxy, pixels.
        b: ``[..., M, 4]`` xyxy, pixels, with the same leading axes.

    Returns:
        ``[..., N, M]`` in 0..1; 0 where the union is 0, so padding rows of zeros overlap nothing.
    """
    left_top = jnp.maximum(a[..., :, None, :2], b[..., None, :, :2])
    right_bottom = jnp.minimum(a[..., :, None, 2:], b[..., None, :, 2:])
    sides = jnp.maximum(right_bottom - left_top, 0.0)
    intersection = sides[..., 0] * sides[..., 1]
    union = area(a)[..., :, None] + area(b)[..., None, :] - intersection
    return jnp.where(union > 0.0, intersection / jnp.where(union > 0.0, union, 1.0), 0.0)


def overlap(a: Sides, b: Sides) -> Float[Array, "..."]:
    """Intersection over union of boxes given as four arrays, one per side.

    Args:
        a: left, top, right, bottom, pixels.
        b: the same, of shapes that broadcast with those of ``a``.

    Returns:
        One overlap for each pair in 0..1; 0 where the union is 0.
    """
    width = jnp.maximum(jnp.minimum(a[2], b[2]) - jnp.maximum(a[0], b[0]), 0.0)
    height = jnp.maximum(jnp.minimum(a[3], b[3]) - jnp.maximum(a[1], b[1]), 0.0)
    intersection = width * height
    union = _area(a) + _area(b) - intersection
    return jnp.where(union > 0.0, intersection / jnp.where(union > 0.0, union, 1.0), 0.0)


def steady_area(boxes: Float[Array, "*N 4"]) -> Float[Array, "*N"]:
    """`area`, protected from fused rounding so that `steady_overlap` can add it."""
    found = area(boxes)
    # A no-op that the compiler cannot see through, so that it rounds the product first.
    return jnp.minimum(found, jnp.finfo(found.dtype).max)


def steady_overlap(
    a: Sides, b: Sides, area_a: Float[Array, "..."], area_b: Float[Array, "..."]
) -> Float[Array, "..."]:
    """`overlap`, rounded after every operation, however it is compiled.

    Compilers may fuse a product with the sum after it and round only once. Boxes placed
    symmetrically about another one can then have different overlaps, and the same overlap computed
    twice can differ.

    Args:
        a: left, top, right, bottom, pixels.
        b: the same, of shapes that broadcast with those of ``a``.
        area_a: areas of ``a``, from `steady_area`.
        area_b: areas of ``b``, likewise.

    Returns:
        As `overlap`.
    """
    width = jnp.maximum(jnp.minimum(a[2], b[2]) - jnp.maximum(a[0], b[0]), 0.0)
    height = jnp.maximum(jnp.minimum(a[3], b[3]) - jnp.maximum(a[1], b[1]), 0.0)
    # A no-op, as a part is never larger than the whole; but the compiler cannot know that.
    intersection = jnp.minimum(width * height, area_b)
    union = area_a + area_b - intersection
    return jnp.where(union > 0.0, intersection / jnp.where(union > 0.0, union, 1.0), 0.0)


def generalized_iou(a: Float[Array, "*N 4"], b: Float[Array, "*N 4"]) -> Float[Array, "*N"]:
    """Generalised intersection over union of each box of ``a`` with the box of ``b`` in its row.

    This is the overlap minus the share of the smallest enclosing box that neither box covers. It is
    invariant to stretching both boxes along an axis and to moving them.

    Args:
        a: ``[..., 4]`` xyxy, with positive sides.
        b: the same.

    Returns:
        ``[...]`` above -1, at most 1.

    Source: Rezatofighi et al. 2019, "Generalized Intersection over Union".
    """
    inner = jnp.minimum(a[..., 2:], b[..., 2:]) - jnp.maximum(a[..., :2], b[..., :2])
    inner = jnp.maximum(inner, 0.0)
    outer = jnp.maximum(a[..., 2:], b[..., 2:]) - jnp.minimum(a[..., :2], b[..., :2])
    common, around = (side[..., 0] * side[..., 1] for side in (inner, outer))
    union = area(a) + area(b) - common
    return common / union - (around - union) / around


def sides(boxes: Float[Array, "*N 4"]) -> Sides:
    """Left, top, right and bottom of boxes, as separate arrays."""
    return boxes[..., 0], boxes[..., 1], boxes[..., 2], boxes[..., 3]


def _area(sides: Sides) -> Array:
    return jnp.maximum(sides[2] - sides[0], 0.0) * jnp.maximum(sides[3] - sides[1], 0.0)


def _is_proper(boxes: Float[Array, "*N 4"]) -> Array:
    """Which boxes are finite and have two positive sides, as ``[..., 1]`` bool."""
    sides = boxes[..., 2:] - boxes[..., :2]
    sound = jnp.all(sides > _SMALLEST_SIDE, axis=-1) & jnp.all(jnp.isfinite(boxes), axis=-1)
    return sound[..., None]


def encode(
    anchors: Float[Array, "*N 4"],
    boxes: Float[Array, "*N 4"],
    stds: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0),
) -> Float[Array, "*N 4"]:
    """The regression target that turns each anchor into its box.

    Args:
        anchors: ``[..., 4]`` xyxy, pixels.
        boxes: ``[..., 4]`` xyxy, pixels, row for row.
        stds: What each delta is divided by (0.1, 0.1, 0.2, 0.2 in a RoI head).

    Returns:
        ``[..., 4]`` (dx, dy, dw, dh): centre shift in anchor sides, log ratio of the sides. Rows in
        which either box is degenerate or not finite give 0 and no gradient, so the caller need not
        mask padding rows.

    Source: Girshick et al., R-CNN, appendix C; mmdetection
        ``models/task_modules/coders/delta_xywh_bbox_coder.py``.
    """
    proper = _is_proper(anchors) & _is_proper(boxes)
    unit = jnp.asarray([0.0, 0.0, 1.0, 1.0], anchors.dtype)
    anchors = jnp.where(proper, anchors, unit)
    boxes = jnp.where(proper, boxes, unit)
    anchor_sides = anchors[..., 2:] - anchors[..., :2]
    box_sides = boxes[..., 2:] - boxes[..., :2]
    anchor_centres = (anchors[..., 2:] + anchors[..., :2]) * 0.5
    box_centres = (boxes[..., 2:] + boxes[..., :2]) * 0.5
    shifts = (box_centres - anchor_centres) / anchor_sides
    ratios = jnp.log(box_sides / anchor_sides)
    return jnp.concatenate([shifts, ratios], axis=-1) / jnp.asarray(stds, anchors.dtype)


def decode(
    anchors: Float[Array, "*N 4"],
    deltas: Float[Array, "*N 4"],
    stds: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0),
    max_log: float = MAX_LOG_RATIO,
    clamp_below: bool = True,
) -> Float[Array, "*N 4"]:
    """Applies regression deltas to the anchors; the inverse of ``encode``.

    Args:
        anchors: ``[..., 4]`` xyxy, pixels.
        deltas: ``[..., 4]`` (dx, dy, dw, dh), as ``encode`` gives them.
        stds: As in ``encode``.
        max_log: Limit of dw and dh after the multiplication by ``stds``.
        clamp_below: Whether ``-max_log`` is a limit too (mmdetection) or not (torchvision).

    Returns:
        ``[..., 4]`` xyxy, pixels, not clipped to any image.

    Source: mmdetection ``models/task_modules/coders/delta_xywh_bbox_coder.py``; torchvision
        ``models/detection/_utils.py``.
    """
    deltas = deltas.astype(anchors.dtype) * jnp.asarray(stds, anchors.dtype)
    log_ratios = jnp.minimum(deltas[..., 2:], max_log)
    if clamp_below:
        log_ratios = jnp.maximum(log_ratios, -max_log)
    anchor_sides = anchors[..., 2:] - anchors[..., :2]
    centres = (anchors[..., 2:] + anchors[..., :2]) * 0.5 + deltas[..., :2] * anchor_sides
    half_sides = jnp.exp(log_ratios) * anchor_sides * 0.5
    return jnp.concatenate([centres - half_sides, centres + half_sides], axis=-1)


def clip(boxes: Float[Array, "B N 4"], sizes: Int[Array, "B 2"]) -> Float[Array, "B N 4"]:
    """Clips boxes to their image (not to the canvas).

    Args:
        boxes: ``[B, N, 4]`` xyxy, pixels.
        sizes: ``[B, 2]`` height and width of each image, pixels.

    Returns:
        ``[B, N, 4]`` with x in 0..width and y in 0..height.
    """
    limits = jnp.asarray(sizes)[:, jnp.asarray([1, 0, 1, 0])].astype(boxes.dtype)
    return jnp.clip(boxes, 0.0, limits[:, None, :])


def flip(
    boxes: Float[Array, "*N 4"], width: int | float | Float[Array, "..."] | Int[Array, "..."]
) -> Float[Array, "*N 4"]:
    """Mirrors boxes left to right inside an image.

    Args:
        boxes: ``[..., 4]`` xyxy, pixels.
        width: Width of the image, pixels; a number, or an array that broadcasts to ``[...]``.

    Returns:
        ``[..., 4]`` xyxy, pixels. Every row is mirrored, padding rows too.
    """
    x0, y0, x1, y1 = jnp.moveaxis(jnp.asarray(boxes), -1, 0)
    width = jnp.asarray(width, x0.dtype)
    return jnp.stack([width - x1, y0, width - x0, y1], axis=-1)
