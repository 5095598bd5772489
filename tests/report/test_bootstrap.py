"""The bootstrap counts as pycocotools does, and its interval moves with what it is given."""

from __future__ import annotations

import contextlib
import copy
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from drkd_jax.report import bootstrap


def make(num_pictures: int = 24, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    annotations = []
    for i in range(num_pictures):
        for _ in range(int(rng.integers(0, 6))):
            x, y, w, h = (*rng.uniform(0, 80, 2), *rng.uniform(6, 40, 2))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 10 * i + 3,
                    "category_id": int(rng.choice([2, 5, 9])),
                    "bbox": [float(x), float(y), float(w), float(h)],
                    "area": float(w * h),
                    "iscrowd": int(rng.random() < 0.1),
                }
            )
    return {
        "images": [{"id": 10 * i + 3, "height": 120, "width": 120} for i in range(num_pictures)],
        "categories": [{"id": k, "name": str(k)} for k in (2, 5, 9)],
        "annotations": annotations,
    }


def detect(truth: dict, noise: float, seed: int) -> list[dict]:
    rng = np.random.default_rng(seed)
    found = []
    for a in truth["annotations"]:
        if rng.random() < 0.8:
            box = np.asarray(a["bbox"]) + rng.normal(0, noise, 4)
            found.append((a["image_id"], a["category_id"], box, rng.uniform(0.3, 1)))
        if rng.random() < 0.5:
            box = np.asarray([*rng.uniform(0, 80, 2), *rng.uniform(6, 40, 2)])
            found.append((a["image_id"], int(rng.choice([2, 5, 9])), box, rng.uniform(0, 0.7)))
    return [
        {"image_id": i, "category_id": c, "bbox": [float(v) for v in b], "score": float(s)}
        for i, c, b, s in found
    ]


def coco_ap(truth: dict, detections: list[dict]) -> float:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        scorer = COCOeval(coco, coco.loadRes([dict(d) for d in detections]), "bbox")
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    return float(scorer.stats[0])


def repeated(truth: dict, detections: list[dict], weights: np.ndarray) -> tuple[dict, list[dict]]:
    """The same draw written out: a picture drawn twice becomes two pictures."""
    images, annotations, found = [], [], []
    for i, (image, weight) in enumerate(zip(truth["images"], weights, strict=True)):
        for again in range(weight):
            new = 1000 * i + again
            images.append({**image, "id": new})
            for a in truth["annotations"]:
                if a["image_id"] == image["id"]:
                    annotations.append({**a, "image_id": new, "id": len(annotations) + 1})
            found += [{**d, "image_id": new} for d in detections if d["image_id"] == image["id"]]
    return {**truth, "images": images, "annotations": annotations}, found


def test_weight_one_is_coco_ap():
    truth = make()
    detections = detect(truth, 2.0, 1)
    ours = bootstrap._average_precision(
        bootstrap._matches(truth, detections), np.ones(len(truth["images"]), np.int64)
    )
    assert ours == pytest.approx(coco_ap(truth, detections), abs=1e-9)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_weights_are_repeated_pictures(seed):
    truth = make(12)
    detections = detect(truth, 2.0, seed)
    weights = np.bincount(np.random.default_rng(seed).integers(0, 12, 12), minlength=12)
    ours = bootstrap._average_precision(bootstrap._matches(truth, detections), weights)
    assert ours == pytest.approx(coco_ap(*repeated(truth, detections, weights)), abs=1e-9)


def test_interval_of_a_real_difference_leaves_zero_out():
    truth = make(40)
    good, bad = detect(truth, 0.5, 1), detect(truth, 6.0, 2)
    interval = bootstrap.ap_difference(truth, bad, good, resamples=100)
    assert interval.settled
    assert interval.low <= interval.difference <= interval.high
    assert interval.difference == pytest.approx(coco_ap(truth, good) - coco_ap(truth, bad))
    back = bootstrap.ap_difference(truth, good, bad, resamples=100)
    assert back.low == pytest.approx(-interval.high)
    assert back.settled


def test_interval_of_the_same_detector_is_zero():
    truth = make()
    detections = detect(truth, 2.0, 1)
    interval = bootstrap.ap_difference(truth, detections, detections, resamples=20)
    assert (interval.difference, interval.low, interval.high) == (0.0, 0.0, 0.0)
    assert not interval.settled


def test_ids_that_a_double_cannot_hold():
    truth = make()
    good, bad = detect(truth, 0.5, 1), detect(truth, 6.0, 2)

    def large(rows: list[dict]) -> list[dict]:
        keys = ("id", "image_id", "category_id")
        return [
            row
            | {key: 2**53 + row[key] // 3 for key in keys if key in row and key != "category_id"}
            for row in rows
        ]

    other = truth | {name: large(truth[name]) for name in ("images", "annotations")}
    wanted = bootstrap.ap_difference(truth, bad, good, resamples=5)
    assert bootstrap.ap_difference(other, large(bad), large(good), resamples=5) == wanted


def test_more_detections_count_where_they_are_asked_for():
    truth = make(1)
    boxes = [[3.0 * i, 5.0, 2.0, 2.0] for i in range(150)]
    truth["annotations"] = [
        {"id": i, "image_id": 3, "category_id": 2, "bbox": b, "area": 4.0, "iscrowd": 0}
        for i, b in enumerate(boxes)
    ]
    found = [{"image_id": 3, "category_id": 2, "bbox": b, "score": 0.5} for b in boxes]
    few = bootstrap.ap_difference(truth, [], found, resamples=2)
    assert few.difference == pytest.approx(67 / 101)  # recall 100 / 150
    more = bootstrap.ap_difference(truth, [], found, resamples=2, max_detections=150)
    assert more.difference == pytest.approx(1)


def test_nothing_is_written_to():
    truth = make()
    detections = detect(truth, 2.0, 1)
    before = copy.deepcopy((truth, detections))
    bootstrap.ap_difference(truth, detections, [], resamples=5)
    assert (truth, detections) == before
