from __future__ import annotations

import pickle

import numpy as np
import pytest

from drkd_jax.data.sources.layout import CLASSES, HARD, cover, lay_out, outline_area, placed
from drkd_jax.data.sources.shapes import ShapesSource, lay_on


@pytest.fixture(scope="module")
def source() -> ShapesSource:
    return ShapesSource(300, 5)


def test_images_depend_on_seed_and_index_only(source):
    fresh = ShapesSource(20, 5)  # neither its length nor what was read before matters
    for index in (19, 3):
        ours, theirs = source.record(index), fresh.record(index)
        np.testing.assert_array_equal(ours.image, theirs.image)
        np.testing.assert_array_equal(ours.boxes, theirs.boxes)
        np.testing.assert_array_equal(ours.labels, theirs.labels)
    other = ShapesSource(20, 6).record(3)
    assert not np.array_equal(other.image, source.record(3).image)


def test_table_and_records_agree(source):
    for index in range(40):
        record, meta = source.record(index), source.meta(index)
        assert record.image.shape == (meta.height, meta.width, 3)
        assert len(record.boxes) == meta.num_boxes
        boxes, labels, _ = source.table.boxes(index)
        np.testing.assert_array_equal(boxes, record.boxes)
        np.testing.assert_array_equal(labels, record.labels)


def test_boxes_are_mostly_small_and_never_tiny(source):
    sides = source.table.bbox[:, 2:]
    assert np.mean(sides[:, 0] * sides[:, 1] < 32**2) >= 0.4
    assert sides.min() >= 6
    assert sides.max() > 64


def test_variety(source):
    table = source.table
    assert set(table.labels.tolist()) == set(range(len(CLASSES)))
    counts = np.bincount(table.num_boxes, minlength=9)
    assert len(counts) == 9
    assert np.all(counts > 0)  # none, and 1 to 8 boxes
    landscape = table.sizes[:, 1] > table.sizes[:, 0]
    assert 0.3 < landscape.mean() < 0.9


def test_boxes_are_tight_around_what_is_visible():
    """Every object laid on those before it by its own coverage, and measured."""
    for index in range(60):
        layout = lay_out(11, index)
        owner = np.full(layout.size, -1)
        for number, coverage in enumerate(layout.objects):
            owner[coverage.rows, coverage.columns][coverage.alpha >= 128] = number
        for number, box in enumerate(layout.boxes):
            y, x = np.nonzero(owner == number)
            assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
            covered = np.count_nonzero(layout.objects[number].alpha >= 128)
            assert len(x) >= 0.5 * covered  # not hidden by later ones


def test_coverage_is_as_large_as_its_outline():
    rng = np.random.default_rng(0)
    for make in CLASSES.values():
        for size in (12.0, 40.0):
            shape = placed(make(rng), size, 0.3, (50.0, 50.0))
            alpha = cover((100, 100), shape).alpha
            assert alpha.sum() / 255 == pytest.approx(outline_area(shape), rel=0.12)


def test_objects_are_painted_where_their_boxes_are():
    """Objects on a flat background, without blur or noise, change only pixels in their boxes."""
    for index in range(20):
        layout = lay_out(2, index)
        for coverage in layout.objects:
            image = np.full((*layout.size, 3), 100, np.float32)
            lay_on(image, coverage, np.random.default_rng(index), HARD.swing)
            y, x = np.nonzero(np.abs(image - 100).max(axis=2) > 0.1)
            strong = np.nonzero(coverage.alpha >= 1)
            assert x.min() >= coverage.columns.start + strong[1].min()
            assert x.max() <= coverage.columns.start + strong[1].max()
            assert y.min() >= coverage.rows.start + strong[0].min()
            assert y.max() <= coverage.rows.start + strong[0].max()


def test_survives_pickling_without_its_drawn_images(source):
    source.record(0)
    small = ShapesSource(3)
    small.record(0)
    assert len(pickle.dumps(small)) < 20_000
    again = pickle.loads(pickle.dumps(small))
    np.testing.assert_array_equal(again.record(1).image, small.record(1).image)


def test_ground_truth_counts(source):
    truth, counts = source.coco_ground_truth(), source.describe()
    assert len(truth["images"]) == counts["images"] == 300
    assert len(truth["annotations"]) == counts["boxes"]
    assert [c["id"] for c in truth["categories"]] == list(range(1, 7))
    assert min(a["id"] for a in truth["annotations"]) == 1  # 0 means "no match" to pycocotools


def test_easy_images_are_square_and_full():
    easy = ShapesSource(40, 5, easy=True)
    assert easy.spec == "shapes:40:5:easy"
    records = [easy.record(index) for index in range(40)]
    assert {record.image.shape for record in records} == {(128, 128, 3)}
    assert min(len(record.boxes) for record in records) >= 1
    assert max(len(record.boxes) for record in records) <= 7
    sides = np.concatenate([r.boxes[:, 2:] - r.boxes[:, :2] for r in records]).max(axis=1)
    assert sides.max() <= 57
    assert np.quantile(sides, 0.05) >= 14  # some are cut by the edge or by another
    assert not np.array_equal(
        records[0].image[:112], ShapesSource(1, 5).record(0).image[:112, :128]
    )
