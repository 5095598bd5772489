"""Non-maximum suppression on padded arrays, with the result of the greedy loop.

Letters: N boxes of one image. Use ``jax.vmap`` for images, or images and levels.

Greedy suppression goes through the boxes by descending score and keeps a box unless a kept, better
one overlaps it. The result is the only solution of
``keep[j] = valid[j] and not any(keep[i] and i suppresses j)``. Iterating this from ``keep = valid``
settles at least one more box of the ranking per round, so it always ends; real boxes take a handful
of rounds. The suppression matrix is stored as bits, 32 boxes per word: a round then reads an
eighth of a mask of bools and costs little beside the overlaps.

On a CPU the greedy loop itself is faster: each box against all others, in the cache.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from drkd_jax import boxes as box_ops
from drkd_jax.ops.onnx_calls import suppress
from drkd_jax.ops.platform import platform
from drkd_jax.types import Array

# Flags per word.
_BITS = 32

Threshold = float | int | Float[Array, ""]


class Selected(NamedTuple):
    """The best kept boxes, by descending score; rows past the last are not ``valid``."""

    indices: Int[Array, "M"]  # rows of the input; 0 where not valid
    valid: Bool[Array, "M"]


def nms(
    boxes: Float[Array, "N 4"],
    scores: Float[Array, "N"],
    valid: Bool[Array, "N"],
    groups: Int[Array, "N"] | None,
    iou_threshold: Threshold,
) -> Bool[Array, "N"]:
    """Marks the boxes that greedy suppression keeps.

    Args:
        boxes: ``[N, 4]`` xyxy, pixels.
        scores: ``[N]`` finite where valid; among equal scores the lower row goes first.
        valid: ``[N]``; other rows are not kept and suppress nothing.
        groups: ``[N]`` ids; boxes of different groups do not suppress each other. The ids are
            compared; shifting groups apart would change the overlaps' last digits. None: one group.
        iou_threshold: An overlap strictly above it suppresses. A Python number is compared
            exactly, not rounded to float32 (as in torchvision's CPU kernel).

    Returns:
        ``[N]`` bool in the rows' own order. No gradient flows. Memory: ``N x N`` bits, 0.5 MB for
        2000 boxes, 40 MB for 5 levels of 16 images at once.

    Source: torchvision ``csrc/ops/cpu/nms_kernel.cpp`` for the strict comparison and the ties.
    """
    boxes, scores = jax.lax.stop_gradient((jnp.asarray(boxes), jnp.asarray(scores)))
    # Computing overlaps in a narrower dtype would round them.
    boxes = boxes.astype(jnp.promote_types(boxes.dtype, jnp.float32))
    iou_threshold = at_most(iou_threshold, boxes.dtype)
    valid = jnp.asarray(valid)
    if platform() == "onnx":
        return suppress(boxes, scores, valid, groups, float(iou_threshold))
    if platform() == "cpu" and len(boxes):
        return _walk(boxes, scores, valid, groups, iou_threshold)
    return _fixed_point(boxes, scores, valid, groups, iou_threshold)


def _walk(boxes: Array, scores: Array, valid: Array, groups: Any, iou_threshold: Any) -> Array:
    """Greedy suppression as a plain loop, best box first."""
    order = jnp.argsort(-scores, stable=True)
    sides = box_ops.sides(boxes[order])
    ids = None if groups is None else jnp.asarray(groups)[order]
    numbers = jnp.arange(len(order), dtype=jnp.int32)

    def suppress(number: Array, keep: Array) -> Array:
        one = tuple(side[number] for side in sides)
        hit = (box_ops.overlap(sides, one) > iou_threshold) & (numbers > number)
        if ids is not None:
            hit &= ids == ids[number]
        return keep & ~(hit & keep[number])

    keep = jax.lax.fori_loop(0, len(order), suppress, valid[order])
    return jnp.zeros_like(keep).at[order].set(keep, unique_indices=True)


def _fixed_point(
    boxes: Array, scores: Array, valid: Array, groups: Any, iou_threshold: Any
) -> Array:
    """Iterates the flags until they no longer change."""
    numbers = jnp.arange(boxes.shape[0])
    ids = None if groups is None else jnp.asarray(groups)
    rows = _Rows(numbers, box_ops.sides(boxes), scores, ids)
    suppressed_by = _suppressors(rows, iou_threshold)

    def unsettled(state: tuple[Array, Array]) -> Array:
        return jnp.any(state[0] != state[1])

    def one_round(state: tuple[Array, Array]) -> tuple[Array, Array]:
        keep, _ = state
        return valid & ~jnp.any(suppressed_by & _pack(_split(keep)), axis=1), keep

    keep, _ = jax.lax.while_loop(unsettled, one_round, one_round((valid, valid)))
    return keep


class _Rows(NamedTuple):
    """The data needed to tell whether one row suppresses another; any axes."""

    number: Array
    sides: box_ops.Sides
    scores: Array
    groups: Array | None


def _suppressors(rows: _Rows, iou_threshold: Any) -> Array:
    """The rows that overlap each row and are better, as ``[N, words]`` of `_pack`.

    Invalid rows need no special case: they are never kept, so they suppress nothing.
    """
    one = jax.tree.map(lambda x: x[:, None, None], rows)
    # All box sides are separate arrays: everything computed for a pair is then a scalar, which the
    # compiler fuses with the reduction to words, so that pairs are never written to memory.
    by = jax.tree.map(_split, rows)
    # A total order of the rows replaces sorting them.
    first = by.number < one.number
    better = (by.scores > one.scores) | ((by.scores == one.scores) & first)
    hit = better & (box_ops.overlap(one.sides, by.sides) > iou_threshold)
    if by.groups is not None and one.groups is not None:
        hit &= by.groups == one.groups
    return _pack(hit)


def _split(x: Array) -> Array:
    """``[N]`` as ``[words, bits]``, padded with zeros."""
    return jnp.pad(x, (0, -len(x) % _BITS)).reshape(-1, _BITS)


def _pack(flags: Bool[Array, "*L bits"]) -> Array:
    """Flags as bits of a word, the first one lowest: ``[...]`` uint32."""
    bits = jnp.asarray(1, jnp.uint32) << jnp.arange(_BITS, dtype=jnp.uint32)
    return jnp.sum(jnp.where(flags, bits, 0), axis=-1, dtype=jnp.uint32)


def at_most(threshold: Threshold, dtype: Any) -> Any:
    """The largest number of the dtype that is at most `threshold`; comparisons are unchanged."""
    if not isinstance(threshold, float):
        return threshold
    rounded = np.asarray(threshold, dtype)
    return np.nextafter(rounded, -np.inf, dtype=dtype) if float(rounded) > threshold else rounded


def select(
    boxes: Float[Array, "N 4"],
    scores: Float[Array, "N"],
    valid: Bool[Array, "N"],
    groups: Int[Array, "N"] | None,
    iou_threshold: Threshold,
    max_out: int,
) -> Selected:
    """Suppression, then the best ``max_out`` of the kept boxes.

    Args:
        boxes: ``[N, 4]`` xyxy, pixels.
        scores: ``[N]`` finite.
        valid: ``[N]``.
        groups: ``[N]`` ids (classes), see `nms`; None: one group.
        iou_threshold: An overlap strictly above it suppresses.
        max_out: Rows of the result; may be more than N.

    Returns:
        ``indices`` and ``valid``, ``[max_out]`` each, by descending score, ties by lower row.
    """
    boxes, scores = jnp.asarray(boxes), jax.lax.stop_gradient(jnp.asarray(scores))
    keep = nms(boxes, scores, valid, groups, iou_threshold)
    num = min(max_out, boxes.shape[0])
    _, indices = jax.lax.top_k(jnp.where(keep, scores, -jnp.inf), num)
    taken = keep[indices]
    missing = (0, max_out - num)
    return Selected(jnp.pad(jnp.where(taken, indices, 0), missing), jnp.pad(taken, missing))
