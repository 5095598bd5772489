"""The figures show the given numbers, and none of them fails on unusual images."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from drkd_jax.report import figures
from drkd_jax.report.figures import Scene
from drkd_jax.report.found import Found, count
from drkd_jax.report.relations import Relations, of_image, similarity

NAMES = ("disc", "ring", "star")


def found(rng: np.random.Generator, n: int, *, scored: bool = True) -> Found:
    corner = rng.uniform(0, 60, (n, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(6, 30, (n, 2))], 1).astype(np.float32)
    scores = rng.uniform(0, 1, n).astype(np.float32) if scored else None
    return Found(boxes, rng.integers(0, 3, n), scores)


def scene(seed: int, n: int) -> Scene:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 255, (96, 128, 3), dtype=np.uint8)
    detectors = {name: found(rng, n + 2) for name in ("teacher", "student")}
    return Scene(image, found(rng, n, scored=False), detectors, f"image {seed}")


def test_count_takes_the_best_box_of_the_right_class_once():
    truth = Found(np.array([[0, 0, 10, 10], [50, 50, 60, 60]], np.float32), np.array([0, 1]), None)
    boxes = np.array(
        [[0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60], [50, 50, 60, 58]], np.float32
    )
    # the second is the same object again, the third has the wrong class
    shown = Found(boxes, np.array([0, 0, 2, 1]), np.array([0.9, 0.8, 0.7, 0.6], np.float32))
    assert count(truth, shown) == (2, 2)
    assert count(truth, shown.best(2)) == (1, 1)


def test_count_of_nothing():
    none = Found(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32))
    some = Found(np.array([[0, 0, 9, 9]], np.float32), np.array([0]), np.array([0.5], np.float32))
    assert count(none, none) == (0, 0)
    assert count(none, some) == (0, 1)
    assert count(some, none) == (0, 0)


def test_similarity_is_one_at_the_point_and_sees_the_same_object():
    rng = np.random.default_rng(0)
    features = rng.normal(0, 0.05, (8, 10, 16)).astype(np.float32) + 5.0  # a large common part
    features[2:4, 3:5] += np.linspace(-1, 1, 16, dtype=np.float32)
    values = similarity(features, (2, 3))
    assert values[2, 3] == pytest.approx(1.0)
    assert values[2:4, 3:5].min() > 0.9
    outside = np.delete(values.reshape(-1), [23, 24, 33, 34])
    assert outside.max() < 0.6


def test_similarity_of_constant_features_is_finite():
    assert np.isfinite(similarity(np.ones((3, 4, 5), np.float32), (0, 0))).all()


def test_detections_figure(tmp_path):
    path = tmp_path / "detections.png"
    figures.detections(path, [scene(0, 5), scene(1, 0)], NAMES)
    height, width = cv2.imread(str(path)).shape[:2]
    assert width == pytest.approx(3 * figures.PANEL * figures.DPI, abs=2)
    assert height > 2 * 0.7 * figures.PANEL * figures.DPI


def test_relation_figures(tmp_path):
    rng = np.random.default_rng(0)
    one = scene(0, 4)
    # the canvas (16 x 20 pixels of stride 8) is larger than the image (12 x 16)
    canvas = rng.normal(size=(2, 1, 16, 20, 8)).astype(np.float32)
    maps = [of_image(each, 12, 16) for each in canvas]
    assert [each.shape for each in maps] == [(12, 16, 8)] * 2
    box = np.array([120, 90, 128, 96], np.float32)  # its centre lies in the last pixel
    boxes = np.stack([box - 60, box, box + 8])
    boxes[0, :2] -= 20  # the largest
    shown = Relations(one.image, boxes, np.zeros(3, int), 8, {"student": tuple(maps)}, {})
    points = [shown.centre(i) for i in shown.largest]
    assert points == [(2, 6), (11, 15), (11, 15)]
    for name, point in zip(("other", "pixels"), points, strict=False):
        row = (point, {title: similarity(x, point) for title, x in zip("ab", maps, strict=True)})
        path = tmp_path / f"{name}.png"
        figures.draw_pixels(path, one.image, 8, [row, row], labels="cd", box=box)
    matrices = {side: np.full((4, 4), 0.25) for side in ("teacher", "student")}
    figures.draw_boxes(
        tmp_path / "boxes.png", one.image, one.truth.boxes, one.truth.labels, NAMES, matrices
    )
    images = {p.stem: cv2.imread(str(p)) for p in tmp_path.glob("*.png")}
    assert set(images) == {"pixels", "other", "boxes"}
    assert not np.array_equal(images["pixels"], images["other"])


def test_boxes_of_a_very_flat_image_are_drawn(tmp_path):
    image, boxes = np.zeros((10, 1500, 3), np.uint8), np.array([[1, 1, 9, 9]] * 3, np.float32)
    matrices = {"A": np.eye(3)[[1, 2, 0]]}
    figures.draw_boxes(tmp_path / "a.png", image, boxes, np.zeros(3, int), NAMES, matrices)
    assert cv2.imread(str(tmp_path / "a.png")).shape[1] < 2**13


def test_names_with_dollars_stay_text(tmp_path):
    names = ("US$", "$_$", r"$\x$")
    figures.detections(tmp_path / "a.png", [scene(0, 5)], names)
    one = scene(0, 4)
    matrices = dict.fromkeys(("$_$", r"$\x$"), np.full((4, 4), 0.25))
    of = one.truth.boxes, one.truth.labels
    figures.draw_boxes(tmp_path / "b.png", one.image, *of, names, matrices)
    rows = [((0, 0), {r"$\x$": np.zeros((12, 16))})]
    figures.draw_pixels(tmp_path / "c.png", one.image, 8, rows)
    assert all(cv2.imread(str(tmp_path / f"{name}.png")) is not None for name in "abc")
