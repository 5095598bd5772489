"""Matching: which anchor answers for which ground truth.

Letters: B pictures, A anchors, G padded ground truths.

Going through the ground truths one by one is six times as fast on a CPU, but rounds overlaps in
another way: anchors that lie alike then tie no longer, and mmdetection's fixtures showed it. So
all machines read the matrix.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from drkd_jax import boxes as box_ops
from drkd_jax.types import Array


class Matches(NamedTuple):
    """What each anchor is to be trained as; neither positive nor negative: left out."""

    # A field hides tuple.index, which nobody needs.
    index: Int[Array, "A"]  # type: ignore[assignment]  # the ground truth of a positive anchor
    positive: Bool[Array, "A"]
    negative: Bool[Array, "A"]


def match(
    iou: Float[Array, "A G"],
    valid: Bool[Array, "G"],
    positive: float,
    negative: float,
    low_quality: float | None = None,
    eligible: Bool[Array, "A"] | None = None,
    overwrite: bool = True,
) -> Matches:
    """Matches the anchors of one picture to its ground truths by overlap.

    An anchor is positive at a best overlap of ``positive`` and more, negative below ``negative``.
    With ``low_quality``, a ground truth whose best overlap reaches it claims *all* anchors that
    have exactly this overlap. An overlap of 0 claims nothing (both libraries let it claim every
    anchor that does not touch the box).

    Args:
        iou: ``[A, G]`` overlaps.
        valid: ``[G]``; other columns are no ground truths. With none valid every eligible anchor
            is negative.
        positive: Least overlap of a positive anchor.
        negative: Overlaps below it are negative.
        low_quality: Least overlap of a low-quality match; None: there are none.
        eligible: ``[A]``; other anchors take no part. None: all do.
        overwrite: Whether a low-quality match also gives the anchor to the ground truth that
            claims it, the later one where several do (mmdetection); otherwise the anchor turns
            positive for the ground truth it overlaps best (torchvision).

    Returns:
        ``index`` int32 in 0..G-1, ``positive``, ``negative``: ``[A]`` each.

    Source: mmdetection ``models/task_modules/assigners/max_iou_assigner.py``; torchvision
        ``models/detection/_utils.py``.
    """
    num_anchors, num_truths = iou.shape
    takes_part = jnp.ones(num_anchors, bool) if eligible is None else jnp.asarray(eligible)
    if num_truths == 0:
        nothing = jnp.zeros(num_anchors, jnp.int32)
        return Matches(nothing, jnp.zeros(num_anchors, bool), takes_part)
    counts = valid[None, :] if eligible is None else valid[None, :] & eligible[:, None]
    iou = jnp.where(counts, jax.lax.stop_gradient(jnp.asarray(iou)), -1.0)
    # Ties are found by comparing overlaps with their own maximum: the barrier keeps the compiler
    # from computing them twice, rounded in two ways.
    iou = jax.lax.optimization_barrier(iou)
    truths = jnp.arange(num_truths, dtype=jnp.int32)
    best = jnp.max(iou, axis=1)
    # The first of the best; a comparison and a minimum run several times faster than an argmax.
    index = jnp.min(jnp.where(iou == best[:, None], truths, num_truths - 1), axis=1)
    is_positive = (best >= positive) & (best >= 0.0)
    is_negative = best < negative
    if low_quality is not None:
        best_of_truth = jnp.max(iou, axis=0)
        reached = (best_of_truth >= low_quality) & (best_of_truth > 0.0)
        claims = (iou == best_of_truth) & reached
        latest = jnp.max(jnp.where(claims, truths, -1), axis=1)
        claimed = latest >= 0
        if overwrite:
            index = jnp.where(claimed, latest, index)
        is_positive |= claimed
    return Matches(index, is_positive & takes_part, is_negative & takes_part & ~is_positive)


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
    """`match` for a batch, from the boxes themselves; arguments and rules are those of `match`.

    Args:
        anchors: xyxy, pixels: one set for all pictures, or one for each.
        boxes: ground truths, xyxy, pixels.
        valid: which of them are real.
        positive: least overlap of a positive anchor.
        negative: overlaps below it are negative.
        low_quality: least overlap of a low-quality match; None: there are none.
        eligible: other anchors take no part.
        overwrite: whether a low-quality match also gives the anchor away.

    Returns:
        ``[B, A]`` each.
    """

    def one(anchors: Array, boxes: Array, valid: Array, eligible: Array) -> Matches:
        iou = box_ops.pairwise_iou(anchors, boxes)
        return match(iou, valid, positive, negative, low_quality, eligible, overwrite)

    axes = (0 if anchors.ndim == 3 else None, 0, 0, 0)
    return jax.vmap(one, axes)(jnp.asarray(anchors), boxes, valid, eligible)
