"""How far an AP difference moves when other validation pictures are drawn.

Letters: I pictures, D detections of one class, T overlap thresholds, K classes, S resamples.

Two students are scored on the same pictures. Drawing those pictures again with replacement, both
students on the same draw, shows what the *choice of pictures* does to the difference of their AP
(a paired bootstrap). It says nothing of what another training seed would do: for that, train more
seeds. The matching of detections to ground truths is pycocotools'; it is done once, and every
resample only counts a picture as often as it was drawn.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io

import numpy as np
from jaxtyping import Bool, Int
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from drkd_jax.evaluation import COCO_MAX, number_ids

RECALLS = np.linspace(0.0, 1.0, 101)


@dataclasses.dataclass(frozen=True)
class Interval:
    """A difference of AP (second minus first) and the middle 95 % of its resamples.

    Attributes:
        difference: On the pictures as they are, 0..1 scale.
        low: 2.5 % of the resamples lie below.
        high: 2.5 % lie above.
        resamples: How many were drawn.
        pictures: How many pictures each of them holds.
    """

    difference: float
    low: float
    high: float
    resamples: int
    pictures: int

    @property
    def settled(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0.0 or self.high < 0.0


@dataclasses.dataclass(frozen=True)
class _Matches:
    """One class: its detections by falling score, and its ground truths counted by picture."""

    picture: Int[np.ndarray, "D"]
    hit: Bool[np.ndarray, "T D"]
    ignored: Bool[np.ndarray, "T D"]
    num_boxes: Int[np.ndarray, "I"]


def ap_difference(
    ground_truth: dict,
    first: list[dict],
    second: list[dict],
    *,
    resamples: int = 500,
    seed: int = 0,
    max_detections: int = COCO_MAX,
) -> Interval:
    """Resample the pictures and compare two sets of detections on each draw.

    Args:
        ground_truth: A COCO dict; every picture in it takes part.
        first: COCO detections of the one that is compared with.
        second: COCO detections of the one that may be better.
        resamples: Draws of as many pictures as there are.
        seed: Of the draws.
        max_detections: Of a class and picture that count, the best ones.

    Returns:
        AP(second) - AP(first), area "all", 0..1 scale. A resample that
        lacks a class is averaged over the classes it has.
    """
    sides = [_matches(ground_truth, detections, max_detections) for detections in (first, second)]
    num_pictures = len(ground_truth["images"])
    ones = np.ones(num_pictures, np.int64)
    observed = _average_precision(sides[1], ones) - _average_precision(sides[0], ones)
    rng = np.random.default_rng(seed)
    differences = np.empty(resamples)
    for s in range(resamples):
        drawn = rng.integers(0, num_pictures, num_pictures)
        weights = np.bincount(drawn, minlength=num_pictures)
        values = [_average_precision(side, weights) for side in sides]
        differences[s] = values[1] - values[0]
    low, high = np.nanpercentile(differences, [2.5, 97.5])
    return Interval(float(observed), float(low), float(high), resamples, num_pictures)


def _matches(
    ground_truth: dict, detections: list[dict], max_detections: int = COCO_MAX
) -> list[_Matches]:
    """Match once with pycocotools, then keep what counting needs."""
    # Copies, into which pycocotools writes, under ids that it can hold.
    numbered = number_ids(ground_truth, detections)
    with contextlib.redirect_stdout(io.StringIO()):
        coco, found = COCO(), COCO()
        coco.dataset = numbered.truth
        coco.createIndex()
        if numbered.detections:
            found = coco.loadRes(numbered.detections)
        else:  # loadRes looks at its first entry
            found.dataset = {**numbered.truth, "annotations": []}
            found.createIndex()
        scorer = COCOeval(coco, found, "bbox")
        scorer.params.areaRng = scorer.params.areaRng[:1]  # "all"
        scorer.params.areaRngLbl = scorer.params.areaRngLbl[:1]
        scorer.params.maxDets = [max_detections]
        scorer.evaluate()
    num_pictures = len(scorer.params.imgIds)
    num_thresholds = len(scorer.params.iouThrs)
    classes = []
    for k in range(len(scorer.params.catIds)):
        rows = scorer.evalImgs[k * num_pictures : (k + 1) * num_pictures]
        num_boxes = np.zeros(num_pictures, np.int64)
        pictures, scores = [np.zeros(0, np.int64)], [np.zeros(0)]
        hits = [np.zeros((num_thresholds, 0), bool)]
        ignored = [np.zeros((num_thresholds, 0), bool)]
        for i, row in enumerate(rows):
            if row is None:
                continue
            num_boxes[i] = np.count_nonzero(np.asarray(row["gtIgnore"]) == 0)
            scores.append(np.asarray(row["dtScores"], np.float64))
            pictures.append(np.full(len(row["dtScores"]), i))
            hits.append(np.asarray(row["dtMatches"]).reshape(num_thresholds, -1) > 0)
            ignored.append(np.asarray(row["dtIgnore"]).reshape(num_thresholds, -1) > 0)
        order = np.argsort(-np.concatenate(scores), kind="mergesort")
        classes.append(
            _Matches(
                np.concatenate(pictures)[order],
                np.concatenate(hits, axis=1)[:, order],
                np.concatenate(ignored, axis=1)[:, order],
                num_boxes,
            )
        )
    return classes


def _average_precision(classes: list[_Matches], weights: Int[np.ndarray, "I"]) -> float:
    """COCO's AP where picture i counts ``weights[i]`` times; NaN where no class has a box.

    Source: pycocotools, ``COCOeval.accumulate``. A picture drawn twice puts two equal rows beside
    each other; the interpolated precision reads the later one, so counting them at once is exact.
    """
    values = []
    for matches in classes:
        num_boxes = float(matches.num_boxes @ weights)
        if num_boxes > 0:
            values.append(_class_precision(matches, weights, num_boxes))
    return float(np.mean(values)) if values else float("nan")


def _class_precision(matches: _Matches, weights: Int[np.ndarray, "I"], num_boxes: float) -> float:
    """Interpolated precision of one class, mean over 101 recalls and the overlap thresholds."""
    if matches.picture.size == 0:
        return 0.0
    count = weights[matches.picture] * ~matches.ignored
    right = np.cumsum(count * matches.hit, axis=1)
    precision = right / np.maximum(np.cumsum(count, axis=1), 1)
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    total = 0.0
    for row, envelope in zip(right / num_boxes, precision, strict=True):
        at = np.searchsorted(row, RECALLS, side="left")
        total += float(envelope[at[at < row.size]].sum())
    return total / (len(precision) * len(RECALLS))
