"""Code shared by the RPN and RetinaNet: the anchors of all levels, and their targets.

Letters: B images, A anchors of all levels, G padded ground truths, h w one feature map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from drkd_jax import anchors as anchor_ops
from drkd_jax.models.conventions import Conventions, Matching
from drkd_jax.models.settings import AnchorSettings
from drkd_jax.ops.matching import match_boxes
from drkd_jax.types import Array, Features, Targets

EXACT = 32  # the coarsest stride that divides every canvas


class Assigned(NamedTuple):
    """The targets of each anchor of each image."""

    truth: Int[Array, "B A"]  # index of its ground truth; meaningless if not positive
    positive: Bool[Array, "B A"]
    negative: Bool[Array, "B A"]


def level_anchors(
    settings: AnchorSettings,
    strides: Sequence[int],
    shapes: Sequence[tuple[int, int]],
    convention: Conventions,
) -> tuple[Float[np.ndarray, "_A 4"], ...]:
    """Anchors of each level as NumPy constants.

    Args:
        settings: sizes and ratios.
        strides: pixels per cell of each level.
        shapes: rows and columns of each level's map.
        convention: whether to round, and how far cells are apart.

    Returns:
        One array per level; boxes in pixels, ordered by row, column, ratio, size.
    """
    levels = []
    for stride, shape in zip(strides, shapes, strict=True):
        size: int = stride
        scales: tuple[float, ...] = settings.scales
        if convention.whole_anchor_sides:
            size, scales = 1, tuple(float(int(stride * scale)) for scale in settings.scales)
        base = anchor_ops.base_anchors(
            size, settings.ratios, scales, rounded=convention.round_anchors
        )
        step: int | tuple[int, int] = stride
        if convention.steps_by_map:
            # The canvas is a multiple of the stride of P5, a level that every pyramid has.
            height, width = (n * EXACT for n in shapes[list(strides).index(EXACT)])
            step = height // shape[0], width // shape[1]
        levels.append(anchor_ops.grid(base, shape, step))
    return tuple(levels)


def assign(
    anchors: Float[Array, "A 4"], targets: Targets, matching: Matching, convention: Conventions
) -> Assigned:
    """Match the anchors with the ground truths of every image.

    The anchors of an invalid image are neither positive nor negative. The same holds, if the
    convention says so, for anchors whose cell lies past the image's own padding.

    Args:
        anchors: anchors of all levels.
        targets: sizes, boxes and flags of the batch.
        matching: overlaps to match by.
        convention: the padding, and whether anchors in the rest of the canvas are trained.
    """
    valid = jnp.asarray(targets.image_valid)[:, None]
    eligible = jnp.broadcast_to(valid, (valid.shape[0], anchors.shape[0]))
    if not convention.train_padding:
        multiple = convention.padding
        padded = -(-jnp.asarray(targets.sizes) // multiple) * multiple
        eligible &= anchor_ops.inside(anchors, padded)

    found = match_boxes(
        anchors,
        targets.boxes,
        targets.valid,
        matching.positive,
        matching.negative,
        matching.low_quality,
        eligible,
        matching.overwrite,
    )
    return Assigned(found.index, found.positive, found.negative)


def device_maps(features: Features) -> tuple[jax.Array, ...]:
    """The maps of a pyramid as JAX arrays, whatever their type."""
    return tuple(jnp.asarray(m) for m in features.maps)


def take_rows(values: Float[Array, "B N D"], rows: Int[Array, "B M"]) -> Float[Array, "B M D"]:
    """Row ``rows[b, m]`` of ``values[b]``."""
    return jnp.take_along_axis(jnp.asarray(values), rows[..., None], axis=1)


def sizable(boxes: Float[Array, "B N 4"], min_side: float | None) -> Bool[Array, "B N"]:
    """Whether both sides of a box have at least `min_side` pixels; None: always."""
    if min_side is None:
        return jnp.ones(boxes.shape[:-1], bool)
    return jnp.all(boxes[..., 2:] - boxes[..., :2] >= min_side, axis=-1)
