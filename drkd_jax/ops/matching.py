"""Matches anchors with ground truths.

Letters: B images, A anchors, G padded ground truths, W ground truths of one block.

Ground truths are compared with all anchors in blocks of W, and each anchor keeps the best result so
far. The full matrix of overlaps therefore never exists. `match_boxes` stops after the last real
ground truth of the batch, so padding rows cost nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from drkd_jax import boxes as box_ops
from drkd_jax.ops.platform import platform
from drkd_jax.ops.spread import by_device
from drkd_jax.types import Array

# On accelerators: ground truths per block, and the number of pairs of an image below which the
# loop runs over all blocks, since a data-dependent number of rounds has to be waited for.
_BLOCK = 25
_SMALL = 2**20


class Matches(NamedTuple):
    """The training target of each anchor; neither positive nor negative means ignored."""

    # The field hides tuple.index, which is not needed.
    index: Int[Array, "B A"]  # type: ignore[assignment]  # the ground truth of a positive anchor
    positive: Bool[Array, "B A"]
    negative: Bool[Array, "B A"]


def match_boxes(
    anchors: Float[Array, "*B A 4"],
    boxes: Float[Array, "B G 4"],
    valid: Bool[Array, "B G"],
    positive: float,
    negative: float,
    low_quality: float | None,
    eligible: Bool[Array, "B A"],
    overwrite: bool = True,
) -> Matches:
    """Matches the anchors of each image to its ground truths by overlap.

    An anchor is positive if its best overlap is at least ``positive``, negative below ``negative``.
    With ``low_quality``, a ground truth whose best overlap reaches it claims *all* anchors that
    have exactly this overlap. An overlap of 0 claims nothing (both libraries let it claim every
    anchor that does not touch the box).

    Args:
        anchors: xyxy, pixels: one set for all images, or one for each.
        boxes: ground truths, xyxy, pixels.
        valid: which of them are real. With none, every eligible anchor is negative.
        positive: least overlap of a positive anchor.
        negative: overlaps below it are negative.
        low_quality: least overlap of a low-quality match; None: there are none.
        eligible: other anchors take no part.
        overwrite: whether a low-quality match assigns the anchor to the ground truth that claims
            it (the last one, if several do; mmdetection); otherwise the anchor becomes positive
            for the ground truth that it overlaps most (torchvision).

    Returns:
        ``index`` int32 in 0..G-1, ``positive``, ``negative``: ``[B, A]`` each.

    Source: mmdetection ``models/task_modules/assigners/max_iou_assigner.py``; torchvision
        ``models/detection/_utils.py``.
    """
    boxes = jax.lax.stop_gradient(jnp.asarray(boxes))
    valid, eligible = jnp.asarray(valid), jnp.asarray(eligible)
    walk = partial(_walk, low_quality=low_quality)
    if anchors.ndim == 3:
        anchors = jax.lax.stop_gradient(jnp.asarray(anchors))
        found = by_device(walk)(boxes, valid, eligible, anchors)
    else:
        found = by_device(partial(walk, anchors=anchors[None]))(boxes, valid, eligible)
    return _decide(found, eligible, positive, negative, overwrite)


class _Found(NamedTuple):
    """The result of some ground truths for each anchor."""

    best: Float[Array, "B A"]  # overlap; -1: none
    index: Int[Array, "B A"]  # of the first ground truth with this overlap
    latest: Int[Array, "B A"]  # the last ground truth that claims the anchor; -1: none does


def _nothing(shape: tuple[int, ...], dtype: jnp.dtype) -> _Found:
    none = jnp.zeros(shape, jnp.int32)
    return _Found(jnp.full(shape, -1.0, dtype), none, none - 1)


def _walk(
    boxes: Array, valid: Array, eligible: Array, anchors: Array, *, low_quality: float | None
) -> _Found:
    """Processes the ground truths of the images block by block."""
    G = boxes.shape[1]
    found = _nothing(eligible.shape, jnp.result_type(anchors, boxes))
    if G == 0:
        return found
    W = 1 if platform() == "cpu" else min(G, _BLOCK)
    blocks = -(-G // W)
    of_anchors = tuple(side[:, None, :] for side in box_ops.sides(anchors))
    areas = box_ops.steady_area(anchors)[:, None, :], box_ops.steady_area(boxes)

    def look(block: int | Array, found: _Found) -> _Found:
        # The last block starts earlier if W does not divide G: seeing a truth twice is harmless.
        first = jnp.minimum(jnp.int32(block * W), G - W)
        some, area, real = (
            jax.lax.dynamic_slice_in_dim(x, first, W, 1)[:, :, None]
            for x in (boxes, areas[1], valid)
        )
        iou = box_ops.steady_overlap(of_anchors, box_ops.sides(some), areas[0], area)
        iou = jnp.where(real & eligible[:, None, :], iou, -1.0)
        return _take_in(found, iou, first, low_quality)

    if blocks == 1 or (W > 1 and G * anchors.shape[1] < _SMALL):
        for block in range(blocks):
            found = look(block, found)
        return found
    numbers = jnp.arange(1, G + 1, dtype=jnp.int32)
    last = jnp.max(jnp.where(jnp.any(valid, axis=0), numbers, 0))
    return jax.lax.fori_loop(jnp.int32(0), (last + W - 1) // W, look, found)


def _take_in(
    found: _Found, iou: Float[Array, "B W A"], first: int | Array, low_quality: float | None
) -> _Found:
    """Updates the result with W more ground truths.

    Args:
        found: the result of the ground truths before them.
        iou: overlaps; -1 where either side takes no part.
        first: index of the first of the W ground truths.
        low_quality: see `match_boxes`.
    """
    numbers = first + jax.lax.broadcasted_iota(jnp.int32, iou.shape, 1)
    claims = jnp.full(iou.shape, -1, jnp.int32)
    if low_quality is not None:
        # Computed together, so that the compiler fuses the maximum with writing the overlaps.
        best_of_truth = jnp.max(iou, axis=2, keepdims=True)
        iou, best_of_truth = jax.lax.optimization_barrier((iou, best_of_truth))
        reached = (best_of_truth >= low_quality) & (best_of_truth > 0.0)
        claims = jnp.where((iou == best_of_truth) & reached, numbers, -1)
    block = _Found(iou, numbers, claims)
    if iou.shape[1] == 1:
        return _both(found, jax.tree.map(lambda rows: rows[:, 0], block))
    nothing = tuple(_nothing((), iou.dtype))
    return _both(found, _Found(*jax.lax.reduce(tuple(block), nothing, _either, (1,))))


def _both(some: _Found, others: _Found) -> _Found:
    """Combines the results of two sets of ground truths, in either order."""
    first = (some.best > others.best) | ((some.best == others.best) & (some.index <= others.index))
    return _Found(
        jnp.where(first, some.best, others.best),
        jnp.where(first, some.index, others.index),
        jnp.maximum(some.latest, others.latest),
    )


def _either(some: Sequence[Array], others: Sequence[Array]) -> tuple[Array, ...]:
    return tuple(_both(_Found(*some), _Found(*others)))


def _decide(
    found: _Found, eligible: Array, positive: float, negative: float, overwrite: bool
) -> Matches:
    is_positive = (found.best >= positive) & (found.best >= 0.0)
    is_negative = found.best < negative
    claimed = found.latest >= 0
    index = jnp.where(claimed, found.latest, found.index) if overwrite else found.index
    is_positive |= claimed
    return Matches(index, is_positive & eligible, is_negative & eligible & ~is_positive)
