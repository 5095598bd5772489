"""Boxes are drawn in the right place, in the class's colour, on large enough images."""

from __future__ import annotations

import numpy as np
import pytest

from drkd_jax import draw

NAMES = ("disc", "ring", "star")


def grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 128, np.uint8)


def box(*corners: float) -> np.ndarray:
    return np.asarray(corners, np.float32).reshape(-1, 4)


def near(image: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return np.abs(image.astype(int) - colour).max(-1) < 12


def test_small_image_is_enlarged_large_one_is_not():
    none = (box(), np.zeros(0, np.int64), None, NAMES)
    assert draw.draw_detections(grey(96, 128), *none).shape == (480, 640, 3)
    assert draw.draw_detections(grey(600, 800), *none).shape == (600, 800, 3)


@pytest.mark.parametrize("shape", [(20, 3000), (3000, 20)])
def test_a_very_flat_image_stays_within_bounds(shape):
    image, factor = draw.enlarge(grey(*shape))
    assert max(image.shape) == draw.LONGEST
    assert factor == pytest.approx(draw.LONGEST / 3000)
    assert draw.draw_detections(grey(*shape), box(1, 1, 9, 9), np.zeros(1, int), None, NAMES).any()
    assert draw.enlarge(grey(1, draw.LONGEST + 1))[1] == 1.0


def test_input_is_not_written_to():
    image = grey(600, 600)
    draw.draw_detections(image, box(10, 10, 90, 90), np.array([0]), None, NAMES)
    assert (image == 128).all()


def test_line_lies_on_the_enlarged_box():
    image = draw.draw_detections(
        grey(96, 96), box(20, 30, 60, 70), np.array([1]), None, NAMES, texts=[""]
    )
    rows, columns = np.nonzero(near(image, draw.class_colour(1)))
    # factor 5; half a line of width 2 and rounding
    assert abs(columns.min() - 100) <= 2
    assert abs(columns.max() - 300) <= 2
    assert abs(rows.min() - 150) <= 2
    assert abs(rows.max() - 350) <= 2
    assert not near(image[170:330, 120:280], draw.class_colour(1)).any()


def test_label_has_a_plate_of_its_class_and_stays_inside():
    # the box touches the upper edge, so the words cannot go above it
    corner = draw.draw_detections(
        grey(480, 480), box(400, 0, 480, 40), np.array([2]), np.array([0.5], np.float32), NAMES
    )
    bare = draw.draw_detections(
        grey(480, 480), box(400, 0, 480, 40), np.array([2]), None, NAMES, texts=[""]
    )
    colour = draw.class_colour(2)
    assert near(corner, colour).sum() > near(bare, colour).sum() + 200


def test_labels_do_not_cover_each_other():
    taken: list[tuple[int, int, int, int]] = []
    canvas = grey(480, 480)
    for x in (200, 205, 210):
        draw._label(canvas, np.array([x, 200, x + 60, 260]), "disc 0.90", (200, 30, 30), taken)
    overlaps = [draw._overlap(a, b) for i, a in enumerate(taken) for b in taken[:i]]
    assert overlaps == [0, 0, 0]


def test_boxes_past_the_border_and_empty_boxes_are_drawn_without_a_fault():
    boxes = box(-20, -20, 10, 10, 50, 50, 50, 50, 90, 90, 400, 400)
    scores = np.array([0.2, 0.9, 0.4], np.float32)
    assert draw.draw_detections(grey(96, 96), boxes, np.array([0, 1, 7]), scores, NAMES).any()


def test_colours_are_stable_and_apart():
    colours = [draw.class_colour(k) for k in range(80)]
    assert colours == [draw.class_colour(k) for k in range(80)]
    first = np.asarray(colours[:12], int)
    apart = np.abs(first[:, None] - first[None]).sum(-1) + 1000 * np.eye(12, dtype=int)
    assert apart.min() > 60
    assert all(0 <= v <= 255 for c in colours for v in c)


def test_side_by_side_keeps_every_image_and_names_a_missing_title():
    row = draw.side_by_side([grey(100, 80), np.zeros((50, 60, 3), np.uint8)], ["a", "a long title"])
    assert row.shape == (24 + 100 + 8, 8 + 80 + 8 + 120 + 8, 3)
    assert (row[24:124, 8:88] == 128).all()
    assert (row[24:124, 96:216] == 0).all()
    with pytest.raises(ValueError, match="1 titles"):
        draw.side_by_side([grey(9, 9), grey(9, 9)], ["one"])
