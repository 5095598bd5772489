"""AP of runs on draws of their validation images, and the intervals of differences between runs.

Letters: I images, D detections of one class, T overlap thresholds, K classes, S draws, N seeds.

Every run is scored on the same draws, so that what is common to all cancels in a difference.
Detections are matched to ground truths by pycocotools, once for each run.

`ap_difference` compares two runs on the images alone: it does not tell what another training seed
would give. For that, train more seeds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy.special import stdtrit

from drkd_jax.evaluation import COCO_MAX, indexed, number_ids

METRICS = ("AP", "AP50", "AP_S", "AP_M")
_AREAS = {"AP": 0, "AP_S": 1, "AP_M": 2}  # indices into pycocotools' list of area ranges
_RECALLS = np.linspace(0.0, 1.0, 101)
_LEVEL = 0.95
_AT_ONCE = 64  # draws


class Interval(NamedTuple):
    """A score or a difference on the original images, 0..1, and the middle 95 % of its draws.

    2.5 % of the draws are below `low`, 2.5 % above `high`.
    """

    value: float
    low: float
    high: float

    @property
    def settled(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0.0 or self.high < 0.0


@dataclasses.dataclass(frozen=True)
class _Matches:
    """One class in one area range: detections by descending score, ground truths by image."""

    image: Int[np.ndarray, "D"]
    hit: Bool[np.ndarray, "T D"]
    ignored: Bool[np.ndarray, "T D"]
    num_boxes: Int[np.ndarray, "I"]


def image_draws(num_images: int, draws: int, seed: int = 0) -> Int[np.ndarray, "S I"]:
    """How often each image occurs in each draw of as many images, with replacement.

    Args:
        num_images: I, at least 1.
        draws: S.
        seed: Seed of the draws; the same for all compared runs.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, num_images, (draws, num_images))
    return np.stack([np.bincount(row, minlength=num_images) for row in drawn])


def resampled_scores(
    ground_truth: dict,
    detections: list[dict],
    draws: Int[np.ndarray, "S I"],
    max_detections: int = COCO_MAX,
) -> dict[str, Float[np.ndarray, "S"]]:
    """COCO's AP, AP50, AP_S and AP_M of one run on every draw of the images.

    Args:
        ground_truth: A COCO dict; images are counted in the order of their sorted ids.
        detections: In COCO's form.
        draws: How often each image counts; see `image_draws`. A row of ones gives the scores
            on the original images.
        max_detections: How many detections count per class and image, best first.

    Returns:
        By the names in `METRICS`, 0..1. A draw that lacks a class is averaged over the classes it
        has; NaN if it has none.

    Source: pycocotools, ``COCOeval.accumulate``. Equal rows beside each other, as an image drawn
        twice makes them, share the precision of the last one, so counting them at once is exact
        (where detections of one class and image have different scores).
    """
    areas = _matches(ground_truth, detections, max_detections)
    scores = {}
    for name, area in _AREAS.items():
        # In parts, since a large set has too many detections for all draws at once.
        parts = range(0, len(draws), _AT_ONCE)
        classes = np.stack(
            [
                np.concatenate([_class_precision(m, draws[i : i + _AT_ONCE]) for i in parts])
                for m in areas[area]
            ]
        )
        found = ~np.isnan(classes[..., 0])  # [K, S]
        number = np.where(found.any(axis=0), found.sum(axis=0), np.nan)
        mean = np.where(found[..., None], classes, 0.0).sum(axis=0) / number[:, None]  # [S, T]
        scores[name] = mean.mean(axis=1)
        if name == "AP":
            scores["AP50"] = mean[:, 0]
    return scores


def ap_difference(
    ground_truth: dict,
    first: list[dict],
    second: list[dict],
    *,
    resamples: int,
) -> Interval:
    """Resamples the images and compares two sets of detections on each draw.

    Args:
        ground_truth: A COCO dict; every image in it takes part.
        first: COCO detections of the reference.
        second: COCO detections of the run that may be better.
        resamples: Number of draws, each of as many images as there are.

    Returns:
        AP(second) - AP(first), area "all", 0..1.
    """
    num_images = len(ground_truth["images"])
    draws = image_draws(num_images, resamples)
    draws = np.concatenate([np.ones_like(draws[:1]), draws])  # the images as they are
    sides = []
    for detections in (first, second):
        truth, found, *_ = number_ids(ground_truth, detections)  # which pycocotools can hold
        sides.append(resampled_scores(truth, found, draws)["AP"])
    return with_interval(sides[1] - sides[0])


def t_reach(values: Float[np.ndarray, "N"]) -> float:
    """Half the width of Student's 95 % interval around the mean; NaN for one value."""
    number = len(values)
    if number < 2:
        return math.nan
    quantile = float(stdtrit(number - 1, (1 + _LEVEL) / 2))
    return quantile * float(values.std(ddof=1)) / math.sqrt(number)


def with_interval(values: Float[np.ndarray, "S"]) -> Interval:
    """The first value, that of the original images, and the interval of all the others."""
    return Interval(float(values[0]), *interval(values[1:]))


def interval(values: Float[np.ndarray, "S"]) -> tuple[float, float]:
    """The middle 95 % of the draws; NaN values are ignored."""
    if np.isnan(values).all():
        return math.nan, math.nan
    tail = 50 * (1 - _LEVEL)
    low, high = np.nanpercentile(values, [tail, 100 - tail])
    return float(low), float(high)


def _class_precision(matches: _Matches, draws: Int[np.ndarray, "S I"]) -> Float[np.ndarray, "S T"]:
    """Interpolated precision, mean over 101 recalls; NaN in draws without a box of the class.

    Precision rises at hits only, and recall with it, so the hits alone are looked at. The sum over
    recalls counts, for every hit, the recalls that it is the first to reach.
    """
    num_boxes = draws @ matches.num_boxes
    precision = np.zeros((len(draws), len(matches.hit)))
    for t, (hit, ignored) in enumerate(zip(matches.hit, matches.ignored, strict=True)):
        kept = np.flatnonzero(~ignored)
        at = np.flatnonzero(hit[kept])
        if at.size == 0:
            continue
        kept = kept[: at[-1] + 1]  # detections after the last hit do not matter
        counts = draws[:, matches.image[kept]]
        right = np.cumsum(counts[:, at], axis=1)
        values = right / np.maximum(np.cumsum(counts, axis=1)[:, at], 1)
        envelope = np.maximum.accumulate(values[:, ::-1], axis=1)[:, ::-1]
        recall = right / np.maximum(num_boxes, 1)[:, None]
        reached = np.searchsorted(_RECALLS, recall, side="right")
        precision[:, t] = (envelope * np.diff(reached, axis=1, prepend=0)).sum(axis=1)
    precision /= len(_RECALLS)
    precision[num_boxes == 0] = np.nan
    return precision


def _matches(
    ground_truth: dict, detections: list[dict], max_detections: int
) -> list[list[_Matches]]:
    """Matches once with pycocotools: for the areas all, small and medium, class by class."""
    # pycocotools modifies the dicts it is given and treats id 0 as no match.
    truth = [{**row, "id": i} for i, row in enumerate(ground_truth["annotations"], 1)]
    found = [
        {**row, "id": i, "area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0}
        for i, row in enumerate(detections, 1)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        both = (indexed(COCO, ground_truth, rows) for rows in (truth, found))
        scorer = COCOeval(*both, "bbox")
        scorer.params.areaRng = scorer.params.areaRng[:3]
        scorer.params.areaRngLbl = scorer.params.areaRngLbl[:3]
        scorer.params.maxDets = [max_detections]
        scorer.evaluate()
    shape = (len(scorer.params.catIds), 3, len(scorer.params.imgIds))
    images = np.empty(len(scorer.evalImgs), object)
    images[:] = scorer.evalImgs
    by_class = images.reshape(shape)
    num_thresholds = len(scorer.params.iouThrs)
    return [
        [_gather(by_class[k, area], num_thresholds) for k in range(shape[0])] for area in range(3)
    ]


def _gather(rows: np.ndarray, num_thresholds: int) -> _Matches:
    """One class in one area range, from pycocotools' result of each image (None: nothing)."""
    num_boxes = np.zeros(len(rows), np.int64)
    images, scores = [np.zeros(0, np.int64)], [np.zeros(0)]
    hits = [np.zeros((num_thresholds, 0), bool)]
    ignored = [np.zeros((num_thresholds, 0), bool)]
    for i, row in enumerate(rows):
        if row is None:
            continue
        num_boxes[i] = np.count_nonzero(np.asarray(row["gtIgnore"]) == 0)
        scores.append(np.asarray(row["dtScores"], np.float64))
        images.append(np.full(len(row["dtScores"]), i))
        hits.append(np.asarray(row["dtMatches"]).reshape(num_thresholds, -1) > 0)
        ignored.append(np.asarray(row["dtIgnore"]).reshape(num_thresholds, -1) > 0)
    order = np.argsort(-np.concatenate(scores), kind="mergesort")
    return _Matches(
        np.concatenate(images)[order],
        np.concatenate(hits, axis=1)[:, order],
        np.concatenate(ignored, axis=1)[:, order],
        num_boxes,
    )
