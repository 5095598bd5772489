"""Crops the regions of the ground-truth boxes from the finest levels that both sides share.

Every box is cropped from each of these levels, whatever its size.

Letters: B images, G padded ground truths, n boxes used, S bins, C channels.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from drkd_jax.ops.roi_align import roi_align_alike
from drkd_jax.types import Array


class ChosenBoxes(NamedTuple):
    """The boxes of each image that the instance terms use: valid ones first, in order."""

    boxes: Float[Array, "B n 4"]
    valid: Bool[Array, "B n"]
    left_out: Int[Array, ""]  # valid boxes of the batch beyond the limit


def choose_boxes(
    boxes: Float[Array, "B G 4"], valid: Bool[Array, "B G"], most: int | None
) -> ChosenBoxes:
    """Moves valid boxes to the front and keeps at most `most` per image.

    Args:
        boxes: the batch's boxes.
        valid: rows that hold a box, not padding.
        most: rows to keep; None: all.

    Returns:
        The boxes; invalid rows are zeros.
    """
    rows = valid.shape[1] if most is None else min(most, valid.shape[1])
    order = jnp.argsort(~valid, axis=1, stable=True)[:, :rows]
    kept = jnp.take_along_axis(valid, order, axis=1)
    boxes = jnp.take_along_axis(boxes, order[:, :, None], axis=1)
    boxes = jnp.where(kept[:, :, None], boxes, 0)
    return ChosenBoxes(boxes, kept, valid.sum() - kept.sum())


def cut(
    maps: tuple[Float[Array, "B _h _w _C"], ...],
    chosen: ChosenBoxes,
    strides: tuple[int, ...],
    size: int,
    sizes: Int[Array, "B 2"] | None,
) -> tuple[Float[Array, "B n S S _C"], ...]:
    """Crops the boxes from some maps as the author does: unaligned RoIAlign, adaptive sampling.

    See `cut_both` for the arguments.
    """
    return cut_both((maps,), chosen, strides, size, sizes)[0]


def cut_both(
    sides: tuple[tuple[Float[Array, "B _h _w _C"], ...], ...],
    chosen: ChosenBoxes,
    strides: tuple[int, ...],
    size: int,
    sizes: Int[Array, "B 2"] | None,
) -> tuple[tuple[Float[Array, "B n S S _C"], ...], ...]:
    """`cut` for student and teacher together; their maps are paired by stride.

    Maps of equal channels, of both sides, are processed together: this takes fewer and fuller
    rounds and compiles a single loop. Invalid rows are not read; their regions are 0.

    Args:
        sides: the student's maps and the teacher's, all of one dtype.
        chosen: the boxes.
        strides: of each map, canvas pixels per map pixel.
        size: S.
        sizes: the images' own sizes, so that no bin samples their padding; None in the official
            form, whose bins do.
    """
    grids = {tuple(x.shape[1:3] for x in maps) for maps in sides}
    if len(sides) > 1 and len(grids) > 1:
        return tuple(cut(maps, chosen, strides, size, sizes) for maps in sides)
    if any(len({x.shape[-1] for x in maps}) > 1 for maps in sides):
        each = (
            cut_both(tuple((x,) for x in level), chosen, (stride,), size, sizes)
            for *level, stride in zip(*sides, strides, strict=True)
        )
        return tuple(tuple(x for (x,) in maps) for maps in zip(*each, strict=True))
    levels = len(strides)
    images, number = chosen.valid.shape
    found = roi_align_alike(
        sides,
        jnp.tile(chosen.boxes, (1, levels, 1)),
        jnp.tile(jnp.repeat(jnp.arange(levels), number), (images, 1)),
        strides,
        size,
        sampling_ratio=0,
        aligned=False,
        sizes=sizes,
        valid=jnp.tile(chosen.valid, (1, levels)),
    )
    return tuple(tuple(jnp.split(regions, levels, axis=1)) for regions in found)
