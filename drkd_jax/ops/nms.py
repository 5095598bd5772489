"""Non-maximum suppression on padded arrays, equal to the greedy loop.

Letters: N boxes of one picture. ``jax.vmap`` serves pictures, or pictures and levels.

Greedy suppression walks down the scores and keeps a box unless a kept, better one overlaps it. Its
answer is the only solution of ``keep[j] = valid[j] and not any(keep[i] and i suppresses j)``,
and iterating this from ``keep = valid`` settles one more box of the ranking per round at the
very least: it always ends, in a handful of rounds on real boxes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from drkd_jax import boxes as box_ops
from drkd_jax.types import Array

Threshold = float | int | Float[Array, ""]


class Selected(NamedTuple):
    """The best boxes that are left, by falling score; rows past the last are not ``valid``."""

    indices: Int[Array, "M"]  # rows of the input; 0 where not valid
    valid: Bool[Array, "M"]


def nms(
    boxes: Float[Array, "N 4"],
    scores: Float[Array, "N"],
    valid: Bool[Array, "N"],
    groups: Int[Array, "N"] | None,
    iou_threshold: Threshold,
) -> Bool[Array, "N"]:
    """Which boxes greedy suppression keeps.

    Args:
        boxes: ``[N, 4]`` xyxy, pixels.
        scores: ``[N]``; among equal scores the lower row goes first.
        valid: ``[N]``; other rows are neither kept nor suppress anything.
        groups: ``[N]`` ids; boxes of different groups do not touch each other. Ids are compared,
            boxes are not shifted apart: a shift moves the overlaps' last digits. None: one group.
        iou_threshold: An overlap strictly above it suppresses. A Python number is compared as it
            is, not rounded to float32 (torchvision's CPU kernel).

    Returns:
        ``[N]`` bool in the rows' own order. No gradient flows. Memory: one ``N x N`` bool mask,
        4 MB for 2000 boxes; 320 MB for 5 levels of 16 pictures at once.

    Source: torchvision ``csrc/ops/cpu/nms_kernel.cpp`` for the strict comparison and the ties.
    """
    boxes, scores = jax.lax.stop_gradient((jnp.asarray(boxes), jnp.asarray(scores)))
    # Overlaps of narrow boxes would be rounded: exact is what float32 makes of them.
    boxes = boxes.astype(jnp.promote_types(boxes.dtype, jnp.float32))
    iou_threshold = _at_most(iou_threshold, boxes.dtype)
    valid = jnp.asarray(valid)
    rows = jnp.arange(boxes.shape[0])
    # [suppressed, suppressor]: a total order of the rows takes the place of sorting them.
    better = (scores[None, :] > scores[:, None]) | (
        (scores[None, :] == scores[:, None]) & (rows[None, :] < rows[:, None])
    )
    mask = better & (box_ops.pairwise_iou(boxes, boxes) > iou_threshold)
    mask &= valid[None, :]
    if groups is not None:
        mask &= groups[None, :] == groups[:, None]

    def unsettled(state: tuple[Array, Array]) -> Array:
        return jnp.any(state[0] != state[1])

    def one_round(state: tuple[Array, Array]) -> tuple[Array, Array]:
        keep, _ = state
        return valid & ~jnp.any(mask & keep[None, :], axis=1), keep

    keep, _ = jax.lax.while_loop(unsettled, one_round, one_round((valid, valid)))
    return keep


def _at_most(threshold: Threshold, dtype: Any) -> Any:
    """The largest number of the dtype that is no larger: as good to be compared with."""
    if not isinstance(threshold, float):
        return threshold
    rounded = np.asarray(threshold, dtype)
    return np.nextafter(rounded, -np.inf, dtype=dtype) if float(rounded) > threshold else rounded


def select(
    boxes: Float[Array, "N 4"],
    scores: Float[Array, "N"],
    labels: Int[Array, "N"] | None,
    valid: Bool[Array, "N"],
    groups: Int[Array, "N"] | None,
    iou_threshold: Threshold,
    max_out: int,
) -> Selected:
    """Suppression, then the best ``max_out`` of what is left.

    Args:
        boxes: ``[N, 4]`` xyxy, pixels.
        scores: ``[N]`` finite.
        labels: ``[N]`` classes, which do not suppress each other; None: suppression over classes.
        valid: ``[N]``.
        groups: ``[N]`` a second id that keeps boxes apart (levels), or None.
        iou_threshold: An overlap strictly above it suppresses.
        max_out: Rows of the answer; may be more than N.

    Returns:
        ``indices`` and ``valid``, ``[max_out]`` each, by falling score, ties by lower row.
    """
    boxes, scores = jnp.asarray(boxes), jax.lax.stop_gradient(jnp.asarray(scores))
    if labels is not None and groups is not None:
        # One dense id for each pair: its first row, so that no product of ids can overflow.
        same = (labels[:, None] == labels[None]) & (groups[:, None] == groups[None])
        groups = jnp.argmax(same, axis=1)
    elif groups is None:
        groups = labels
    keep = nms(boxes, scores, valid, groups, iou_threshold)
    num = min(max_out, boxes.shape[0])
    _, indices = jax.lax.top_k(jnp.where(keep, scores, -jnp.inf), num)
    taken = keep[indices]
    missing = (0, max_out - num)
    return Selected(jnp.pad(jnp.where(taken, indices, 0), missing), jnp.pad(taken, missing))
