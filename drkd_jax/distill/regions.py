"""The ground truth's boxes, cut out of both sides' finest common maps.

Every box comes from each of these levels, whatever its size, with the side's own stride.

Letters: B pictures, G padded ground truths, n boxes looked at, S bins, C channels.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from drkd_jax.ops.roi_align_adaptive import roi_align_adaptive
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
    features: Float[Array, "B h w C"],
    chosen: ChosenBoxes,
    stride: int,
    size: int,
    sizes: Int[Array, "B 2"] | None,
) -> Float[Array, "B n S S C"]:
    """The boxes' regions of one map, as the author cuts them: not aligned, adaptive samples.

    Args:
        features: one side's map.
        chosen: the boxes.
        stride: that side's canvas pixels per map pixel.
        size: S.
        sizes: the pictures' own sizes, so that no bin leans on their padding; None in the official
            form, where it does.
    """
    return roi_align_adaptive(features, chosen.boxes, stride, size, aligned=False, sizes=sizes)
