"""Paired differences: scores on draws against pycocotools, intervals against loops."""

from __future__ import annotations

import contextlib
import copy
import io
import math

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from drkd_jax.report import paired
from drkd_jax.report.paired import (
    METRICS,
    ap_difference,
    image_draws,
    resampled_scores,
)


def make(num_images: int = 24, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    annotations = []
    for i in range(num_images):
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
        "images": [{"id": 10 * i + 3, "height": 120, "width": 120} for i in range(num_images)],
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


def repeated(truth: dict, detections: list[dict], weights: np.ndarray) -> tuple[dict, list[dict]]:
    """The same draw in full: an image drawn twice becomes two images."""
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


def coco_scores(truth: dict, detections: list[dict]) -> dict[str, float]:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        scorer = COCOeval(coco, coco.loadRes([dict(d) for d in detections]), "bbox")
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    return dict(zip(METRICS, scorer.stats[[0, 1, 3, 4]], strict=True))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_draws_are_repeated_images(seed):
    truth = make(14, seed)
    detections = detect(truth, 2.0, seed)
    draws = np.concatenate([np.ones((1, 14), np.int64), image_draws(14, 3, seed)])
    found = resampled_scores(truth, detections, draws)
    for s, row in enumerate(draws):
        wanted = coco_scores(*repeated(truth, detections, row))
        for name in METRICS:
            assert found[name][s] == pytest.approx(wanted[name], abs=1e-12)


def test_draws_in_parts_are_the_same_bits(monkeypatch):
    truth = make(14)
    found = detect(truth, 2.0, 0)
    draws = image_draws(14, 7)
    whole = resampled_scores(truth, found, draws)
    monkeypatch.setattr(paired, "_AT_ONCE", 3)
    parts = resampled_scores(truth, found, draws)
    for name in METRICS:
        assert np.array_equal(whole[name], parts[name])


def test_of_equal_scores_those_of_earlier_images_rank_higher():
    truth = make()
    found = [row | {"score": round(row["score"], 1)} for row in detect(truth, 2.0, 0)]
    scores = resampled_scores(truth, found, np.ones((1, 24), np.int64))
    wanted = coco_scores(truth, found)
    for name in METRICS:
        assert scores[name][0] == pytest.approx(wanted[name], abs=1e-12)


def test_a_draw_without_any_box_is_nan_and_no_detection_is_zero():
    truth = make(12)
    bare = next(
        i
        for i, image in enumerate(truth["images"])
        if image["id"] not in {a["image_id"] for a in truth["annotations"]}
    )
    draws = np.stack([np.ones(12, np.int64), 12 * np.eye(12, dtype=np.int64)[bare]])
    found = resampled_scores(truth, [], draws)
    assert found["AP"][0] == 0.0
    assert math.isnan(found["AP"][1])


def test_every_draw_holds_as_many_images():
    draws = image_draws(9, 50)
    assert draws.shape == (50, 9)
    assert (draws.sum(axis=1) == 9).all()
    assert np.array_equal(draws, image_draws(9, 50))
    assert len(np.unique(draws, axis=0)) > 40


def test_an_interval_is_of_the_draws_alone_and_leaves_out_nan():
    found = paired.with_interval(np.array([7.0, math.nan, 0.0, 1.0]))
    assert found == (7.0, pytest.approx(0.025), pytest.approx(0.975))
    assert np.isnan(paired.interval(np.full(3, math.nan))).all()


def test_interval_of_a_real_difference_leaves_zero_out():
    truth = make(40)
    good, bad = detect(truth, 0.5, 1), detect(truth, 6.0, 2)
    interval = ap_difference(truth, bad, good, resamples=100)
    assert interval.settled
    assert interval.low <= interval.value <= interval.high
    assert interval.value == pytest.approx(
        coco_scores(truth, good)["AP"] - coco_scores(truth, bad)["AP"]
    )
    back = ap_difference(truth, good, bad, resamples=100)
    assert back.low == pytest.approx(-interval.high)
    assert back.settled


def test_interval_of_the_same_detector_is_zero():
    truth = make()
    detections = detect(truth, 2.0, 1)
    interval = ap_difference(truth, detections, detections, resamples=20)
    assert (interval.value, interval.low, interval.high) == (0.0, 0.0, 0.0)
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
    wanted = ap_difference(truth, bad, good, resamples=5)
    assert ap_difference(other, large(bad), large(good), resamples=5) == wanted


def test_more_detections_count_where_they_are_asked_for():
    truth = make(1)
    boxes = [[3.0 * i, 5.0, 2.0, 2.0] for i in range(150)]
    truth["annotations"] = [
        {"id": i, "image_id": 3, "category_id": 2, "bbox": b, "area": 4.0, "iscrowd": 0}
        for i, b in enumerate(boxes)
    ]
    found = [{"image_id": 3, "category_id": 2, "bbox": b, "score": 0.5} for b in boxes]
    few = ap_difference(truth, [], found, resamples=2)
    assert few.value == pytest.approx(67 / 101)  # recall 100 / 150
    more = resampled_scores(truth, found, np.ones((1, 1), int), max_detections=150)
    assert more["AP"] == pytest.approx(1)


def test_nothing_is_written_to():
    truth = make()
    detections = detect(truth, 2.0, 1)
    before = copy.deepcopy((truth, detections))
    ap_difference(truth, detections, [], resamples=5)
    assert (truth, detections) == before
