"""The ground truth's boxes, cut out of both sides' finest common maps.

Every box comes from each of these levels, whatever its size, with the side's own stride.

Letters: B pictures, G padded ground truths, n boxes looked at, S bins, C channels.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from drkd_jax.ops.roi_align import roi_align
from drkd_jax.types import Array


class ChosenBoxes(NamedTuple):
    """The boxes of each picture that the instance terms look at: valid ones first, in order."""

    boxes: Float[Array, "B n 4"]
    valid: Bool[Array, "B n"]
    left_out: Int[Array, ""]  # valid boxes of the batch that found no place


def choose_boxes(
    boxes: Float[Array, "B G 4"], valid: Bool[Array, "B G"], most: int | None
) -> ChosenBoxes:
    """Moves valid boxes to the front and keeps at most so many of an image.

    Args:
        boxes: the batch's boxes.
        valid: rows that are there.
        most: rows to keep; None: all.

    Returns:
        The boxes; rows that are not valid are zeros.
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
    """The boxes' regions of some maps, as the author cuts them: not aligned, adaptive samples.

    Maps of equal channels are read in one go: one loop to compile in place of one a map.

    Args:
        maps: one side's, of one dtype.
        chosen: the boxes.
        strides: of each map, canvas pixels per map pixel.
        size: S.
        sizes: the pictures' own sizes, so that no bin leans on their padding; None in the official
            form, where it does.
    """
    if len({x.shape[-1] for x in maps}) > 1:
        each = zip(maps, strides, strict=True)
        return tuple(cut((x,), chosen, (stride,), size, sizes)[0] for x, stride in each)
    pictures, number = chosen.valid.shape
    boxes = jnp.tile(chosen.boxes, (1, len(maps), 1))
    levels = jnp.tile(jnp.repeat(jnp.arange(len(maps)), number), (pictures, 1))
    found = roi_align(maps, boxes, levels, strides, size, 0, aligned=False, sizes=sizes)
    return tuple(jnp.split(found, len(maps), axis=1))
