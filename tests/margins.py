"""Checks the margins of a detector's choices: whether another rounding could change one.

Two programs, or one program on two processors, agree only up to rounding. Choices from such numbers
(the box that NMS keeps, the order of scores, the matched anchor, the level that a region is read
from) are the same on both sides only if they are clear. `clear` checks each choice while a model
runs, and fails if one of them is not.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import jax
import numpy as np

from drkd_jax.models import dense, roi_head, rpn
from drkd_jax.ops import nms as nms_file
from drkd_jax.ops import roi_plan

# Float32 rounding moves overlaps by 2e-7 and scores, relative to the largest, by 1e-6 at most.
TIE = 2.0**-22  # for overlaps: a few last bits of a float32 below 1
LIMITS = {"overlap": 1e-5, "score": 2e-6, "level": 1e-5, "samples": 1e-5}
# The scores of missing boxes, whose order does not matter.
FILLING = (-1.0, 0.0)


class Margins:
    """The smallest margin of each kind of choice, and how many choices there were."""

    def __init__(self) -> None:
        self.smallest: dict[str, float] = {}
        self.count = 0

    def note(self, kind: str, distances: np.ndarray) -> None:
        """Keeps the smallest of several distances from an edge."""
        self.count += 1
        distances = np.asarray(distances, np.float64)
        if distances.size:
            self.smallest[kind] = min(float(distances.min()), self.smallest.get(kind, np.inf))

    # The following methods get the arguments of the choosing functions.

    def order(self, values: np.ndarray, taken: int, in_order: bool, floor: float) -> None:
        """For the choice of the best scores: the distance of the last chosen from the next one.

        With ``in_order``, if their order matters later: the distance of each from the next. All are
        relative to the largest. Scores at or below the floor have no effect.
        """
        rows = -np.sort(-np.asarray(values, np.float64), axis=-1)[..., : taken + 1]
        gaps = rows[..., :-1] - rows[..., 1:]
        real = np.isfinite(rows[..., 1:]) & ~np.isin(rows[..., 1:], FILLING)
        real &= rows[..., :-1] > floor
        if not in_order:
            real[..., : taken - 1] = False
        largest = _largest(rows)
        self.note("score", gaps[real] / largest)
        if floor > 0:
            self.note("score", np.abs(rows - floor) / largest)

    def suppression(self, boxes, scores, valid, groups, threshold) -> None:
        """Overlaps from the threshold; scores of boxes from those that they suppress."""
        overlaps = pairwise(boxes, boxes)
        pairs = np.triu(valid[:, None] & valid, 1)
        if groups is not None:
            pairs &= groups[:, None] == groups
        self.note("overlap", np.abs(overlaps - threshold)[pairs])
        rivals = pairs & (overlaps > threshold)
        above, below = np.nonzero(rivals)
        scores = scores.astype(np.float64)
        self.note("score", np.abs(scores[above] - scores[below]) / _largest(scores))

    def matching(self, iou, valid, positive, negative, low_quality, eligible) -> None:
        """Best overlaps from the thresholds, and from the second-best of an anchor or a truth."""
        counted = np.asarray(iou, np.float64)[eligible][:, valid]
        if not counted.size:
            return
        best = counted.max(axis=1)
        for edge in (positive, negative):
            self.note("overlap", np.abs(best - edge))
        two = -np.sort(-counted, axis=1)[:, :2]
        matched = two[two[:, 0] >= positive]
        if counted.shape[1] > 1:
            self.note("overlap", matched[:, 0] - matched[:, 1])
        if low_quality is None:
            return
        of_truth = -np.sort(-counted, axis=0)[:2]
        reached = of_truth[0] > 0
        self.note("overlap", np.abs(of_truth[0] - low_quality)[reached & (low_quality > 0)])
        if len(of_truth) > 1:
            # Anchors in similar places tie, and equal ones are claimed together. If rounding
            # separates such a pair by its last bits, the claimed one depends on it: not checked.
            gaps = (of_truth[0] - of_truth[1])[reached]
            self.note("overlap", gaps[gaps > TIE])

    def level(self, sides: np.ndarray, canonical: float, count: int) -> None:
        """Sides of regions from the limits between levels, in octaves."""
        octaves = np.log2(np.maximum(np.asarray(sides, np.float64), 1e-30) / canonical)
        self.note("level", np.abs(octaves[..., None] - np.arange(1, count)))

    def samples(self, length: np.ndarray, bins: int) -> None:
        """Cells of a bin from a whole number of samples; whole numbers themselves are exact."""
        cells = np.asarray(length, np.float64) / bins
        self.note("samples", np.abs(cells - np.round(cells))[(cells > 0) & (cells % 1 != 0)])

    def check(self) -> None:
        """Fails if a choice is nearer to another result than its limit."""
        assert self.count, "no choice was seen: was the model compiled before?"
        near = {k: v for k, v in self.smallest.items() if not v > LIMITS[k]}
        assert not near, f"choices within rounding of another answer: {near}, limits {LIMITS}"


def _largest(values: np.ndarray) -> float:
    return max(float(np.abs(values[np.isfinite(values)]).max(initial=0)), 1e-30)


def pairwise(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Overlap of all pairs of boxes in float64; `oracles.pairwise_iou` without its loops."""
    a, b = np.asarray(a, np.float64)[:, None], np.asarray(b, np.float64)[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    inter = np.maximum(sides, 0).prod(axis=-1)
    areas = (np.maximum(x[..., 2:] - x[..., :2], 0).prod(axis=-1) for x in (a, b))
    union = sum(areas) - inter
    return np.where(union > 0, inter / np.where(union > 0, union, 1), 0.0)


def tied(anchors: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Which anchors equal the best one of some truth up to the last bits.

    Rounding decides which of them is claimed for that truth.

    Args:
        anchors: ``[A, 4]``.
        boxes: the valid truths ``[G, 4]``.
    """
    overlaps = pairwise(anchors, boxes)
    best = overlaps.max(axis=0, initial=0)
    return ((overlaps > 0) & (overlaps >= best - TIE)).any(axis=1)


@contextmanager
def clear(floor: float = 0.0) -> Iterator[Margins]:
    """Checks all choices of a model that runs inside the context without jit.

    Choices inside a function that was compiled before are not seen.

    Args:
        floor: the least score of a detection; scores must be clear of it too.
    """
    found = Margins()
    own = {
        "nms": nms_file.nms,
        "match": dense.match_boxes,
        "top_k": jax.lax.top_k,
        "levels": roi_head.region_levels,
        "axis": roi_plan.axis,
    }

    def seen(note, *arrays):
        # A callback, as most choices are under vmap: it runs once per image.
        jax.debug.callback(lambda *values: note(*map(np.asarray, values)), *arrays)

    def nms(boxes, scores, valid, groups, threshold):
        given = [boxes, scores, valid] + ([] if groups is None else [groups])
        seen(
            lambda b, s, v, g=None: found.suppression(b, s, v, g, float(threshold)),
            *given,
        )
        return own["nms"](boxes, scores, valid, groups, threshold)

    def match(anchors, boxes, valid, positive, negative, low_quality, eligible, *rest):
        def note(ious, v, e):
            for iou, real, counted in zip(ious, v, e, strict=True):
                found.matching(iou, real, positive, negative, low_quality, counted)

        # In float32, where anchors in similar places have equal overlaps, bit for bit.
        axes = (0 if anchors.ndim == 3 else None, 0)
        ious = jax.vmap(roi_head.box_ops.pairwise_iou, axes)(jax.numpy.asarray(anchors), boxes)
        seen(note, ious, valid, eligible)
        limits = positive, negative, low_quality
        return own["match"](anchors, boxes, valid, *limits, eligible, *rest)

    def top_k(values, k):
        caller = sys._getframe(1)
        # Draws come from random bits, which no processor rounds.
        if caller.f_globals["__name__"] != "drkd_jax.ops.sampling":
            place = caller.f_code.co_name
            # Of the two choices in `propose`, the second one's order is that of the result.
            in_order = place == "select" or "flat_scores" in caller.f_locals
            low = -np.inf if place in ("propose", "select") else floor
            seen(lambda v: found.order(v, k, in_order, low), values)
        return own["top_k"](values, k)

    def levels(boxes, min_level=2, max_level=5, canonical=56.0, **rest):
        sides = jax.numpy.sqrt(roi_head.box_ops.area(boxes))
        seen(lambda s: found.level(s, canonical, max_level - min_level + 1), sides)
        return own["levels"](boxes, min_level, max_level, canonical, **rest)

    def axis(first, last, size, how, shortest):
        if not how.samples:
            seen(lambda a, b: found.samples(b - a, how.bins), first, last)
        return own["axis"](first, last, size, how, shortest)

    with ExitStack() as stack:
        for owner, name, function in (
            (nms_file, "nms", nms),
            (rpn, "nms", nms),
            (dense, "match_boxes", match),
            (roi_head, "match_boxes", match),
            (jax.lax, "top_k", top_k),
            (roi_head, "region_levels", levels),
            (roi_plan, "axis", axis),
        ):
            stack.enter_context(mock.patch.object(owner, name, function))
        yield found
        jax.effects_barrier()
    found.check()
