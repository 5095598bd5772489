from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drkd_jax.data.batch import image_batch
from drkd_jax.data.pipeline import PipelineConfig, eval_batches, train_loader
from drkd_jax.data.sources import open_source
from drkd_jax.data.transforms import (
    MIN_VISIBLE,
    Window,
    crop_boxes,
    cut_out,
    fit,
    recolour,
    resize,
    scale_boxes,
    window,
)

COCO = ((800, 1344), (1344, 800))


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [  # by hand: scale = min(1333 / longer, 800 / shorter), then int(side * scale + 0.5)
        (480, 640, (800, 1067)),
        (427, 640, (800, 1199)),
        (333, 640, (694, 1333)),
        (640, 480, (1067, 800)),
        (500, 500, (800, 800)),
    ],
)
def test_resize_rule(height, width, size):
    canvas, fitted = fit(height, width, 800, 1333, COCO)
    assert fitted == size
    assert canvas == (0 if width >= height else 1)
    assert fit(height, width, 800, 1333, COCO[::-1]) == (1 - canvas, size)  # no matter their order


@pytest.mark.parametrize(
    ("height", "width", "mmdet", "torchvision"),
    [  # what mmcv 2.1.0's imrescale and torchvision 0.14.1's GeneralizedRCNNTransform made of them
        (480, 640, (800, 1067), (800, 1066)),
        (427, 640, (800, 1199), (799, 1199)),
        (333, 640, (694, 1333), (693, 1333)),
        (375, 500, (800, 1067), (799, 1066)),
        (612, 612, (800, 800), (800, 800)),
        (33, 2000, (22, 1333), (21, 1333)),
        (1080, 1920, (750, 1333), (749, 1333)),
        (1, 7, (190, 1333), (190, 1333)),
    ],
)
def test_sides_are_the_library_s(height, width, mmdet, torchvision):
    canvases = ((1344, 1344),)
    assert fit(height, width, 800, 1333, canvases)[1] == mmdet
    assert fit(height, width, 800, 1333, canvases, "torchvision")[1] == torchvision


def test_floats_are_interpolated_and_bytes_are_rounded():
    image = np.zeros((1, 2, 3), np.uint8)
    image[0, 1] = 5
    floats, rounded = (resize(image, (1, 4), dtype) for dtype in (np.float32, np.uint8))
    # pixel centres at halves, no antialiasing: torchvision's align_corners=False
    np.testing.assert_array_equal(floats[0, :, 0], [0, 1.25, 3.75, 5])
    np.testing.assert_array_equal(rounded[0, :, 0], [0, 1, 4, 5])


def test_smallest_holding_canvas():
    canvases = ((800, 1344), (800, 1088), (1344, 800))
    assert fit(480, 640, 800, 1333, canvases)[0] == 1
    assert fit(427, 640, 800, 1333, canvases)[0] == 0


def test_no_canvas_holds_it():
    canvas, size = fit(100, 200, 200, 400, ((64, 64), (96, 128), (128, 96)))
    assert canvas == 1
    assert size == (64, 128)


@given(
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.lists(st.tuples(st.integers(1, 500), st.integers(1, 500)), min_size=1, max_size=3),
)
@settings(max_examples=200, deadline=None)
def test_always_on_its_canvas(height, width, canvases):
    canvas, size = fit(height, width, 200, 333, canvases)
    assert 1 <= size[0] <= canvases[canvas][0]
    assert 1 <= size[1] <= canvases[canvas][1]


def test_boxes_are_scaled_with_their_image():
    boxes = np.array([[1, 2, 20, 10]], np.float32)
    scaled = scale_boxes(boxes, np.array([2.0, 2.0], np.float32), (20, 40))
    np.testing.assert_array_equal(scaled, [[2, 4, 40, 20]])


@pytest.mark.parametrize(("height", "width"), [(480, 640), (33, 2000), (900, 300)])
def test_a_stretched_image_has_the_sides_that_are_asked_for(height, width):
    assert fit(height, width, 300, 500, ((320, 512),), "stretch") == (0, (300, 500))
    assert fit(height, width, 500, 300, ((320, 512), (512, 320)), "stretch") == (1, (500, 300))
    assert fit(height, width, 600, 400, ((320, 512), (512, 320)), "stretch") == (1, (480, 320))


def test_images_that_are_predicted_on_say_their_scale_along_x_and_y():
    config = dataclasses.replace(PLAIN, resize="stretch", shorter=40, longer=90)
    batch = image_batch([np.full((20, 30, 3), 255, np.uint8)], config, 2)
    np.testing.assert_array_equal(batch.scale, [[3, 2], [1, 1]])
    np.testing.assert_array_equal(batch.sizes, [[40, 90], [0, 0]])
    np.testing.assert_array_equal(batch.index, [0, -1])
    np.testing.assert_array_equal(batch.image_valid, [True, False])
    wanted = np.zeros((2, 64, 96, 3))
    wanted[0, :40, :90] = 255
    np.testing.assert_array_equal(batch.images, wanted)


PLAIN = PipelineConfig(
    batch_size=4,
    canvases=((64, 96), (96, 64)),
    shorter=64,
    longer=96,
    max_boxes=8,
    num_threads=0,
    prefetch=2,
)
JITTERED = dataclasses.replace(PLAIN, scale_jitter=(0.5, 2.0), colour_jitter=0.4)


@pytest.fixture(scope="module")
def source():
    return open_source("shapes:12")


def take(source, config, count=4, **hosts):
    loader = train_loader(source, config, **hosts)
    return [next(loader) for _ in range(count)]


def test_a_drawn_rectangle_stays_in_its_box():
    rng = np.random.default_rng(0)
    seen = 0
    for _ in range(60):
        x1, y1 = rng.integers(0, [80, 50])
        x2, y2 = x1 + rng.integers(12, 40), y1 + rng.integers(12, 30)
        image = np.zeros((80, 120, 3), np.uint8)
        image[y1:y2, x1:x2] = 255
        boxes = np.array([[x1, y1, x2, y2]], np.float32)
        found = window((80, 120), (80, 120), (0.5, 2.0), rng.random(6))
        cut = cut_out(image, found, np.uint8)
        assert cut.shape[:2] == found.size
        scale = np.array([found.full[1] / 120, found.full[0] / 80])
        whole = scale_boxes(boxes, scale, found.full)
        ((box,), (kept,)) = crop_boxes(whole, found)
        bright = cut[..., 0] > 127
        share = bright.sum() / ((x2 - x1) * (y2 - y1) * np.prod(scale))
        if abs(share - MIN_VISIBLE) > 0.1:
            assert kept == (share > MIN_VISIBLE), share
        if kept:
            ys, xs = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
            measured = [xs[0], ys[0], xs[-1] + 1, ys[-1] + 1]
            np.testing.assert_allclose(box, measured, atol=1.0)
            seen += 1
    assert 30 < seen < 60


def test_factors_and_crops_reach_their_limits():
    low, high = (window((64, 64), (64, 64), (0.5, 2.0), np.full(6, c)) for c in (0.0, 1 - 1e-9))
    assert low == ((32, 32), (0, 0), (32, 32))
    assert high == ((128, 128), (64, 64), (64, 64))
    first = window((64, 64), (64, 96), (2.0, 2.0), np.zeros(6))
    assert first == ((128, 128), (0, 0), (64, 96))
    lines = np.float32([[5, 5, 5, 9], [70, 5, 80, 9], [5, 5, 6, 9]])  # no area, none of it seen
    assert crop_boxes(lines, Window((128, 128), (0, 0), (64, 64)))[1].tolist() == [
        False,
        False,
        True,
    ]


def test_colours_follow_the_three_maps_written_out():
    rng = np.random.default_rng(1)
    image = rng.uniform(80, 160, (20, 30, 3)).astype(np.float32)
    grey = np.array([0.299, 0.587, 0.114])
    for chances in (rng.random(6), np.array([0, 0, 0, 0.5, 0.5, 0.5])):
        b, c, s = 1 + 0.2 * (2 * chances[3:] - 1)
        wanted = b * image.astype(np.float64)
        wanted = c * wanted + (1 - c) * (wanted @ grey).mean()
        wanted = s * wanted + (1 - s) * (wanted @ grey)[..., None]
        changed = recolour(image, 0.2, chances)
        np.testing.assert_allclose(changed, wanted, atol=1e-3)
    np.testing.assert_allclose(changed, image, atol=1e-3)  # chances of a half change nothing
    rounded = recolour(image.astype(np.uint8), 1.0, np.ones(6))
    assert rounded.dtype == np.uint8
    for cut in (rounded, recolour(image, 1.0, np.ones(6))):
        assert cut.min() == 0
        assert cut.max() == 255


def test_hosts_threads_and_the_way_there_change_nothing(source):
    batches = take(source, JITTERED)
    threads = take(source, dataclasses.replace(JITTERED, num_threads=3))
    halves = [take(source, JITTERED, process_index=i, process_count=2) for i in range(2)]
    loader = train_loader(source, JITTERED)
    loader.set_state({"next_batch": 3})
    assert all(map(np.array_equal, next(loader), batches[3]))
    for batch, other, first, second in zip(batches, threads, *halves, strict=True):
        joined = map(np.concatenate, zip(first, second, strict=True))
        for mine, theirs, parts in zip(batch, other, joined, strict=True):
            np.testing.assert_array_equal(mine, theirs)
            np.testing.assert_array_equal(mine, parts)


def test_jitter_changes_images_and_nothing_of_the_plan(source):
    plain, jittered = take(source, PLAIN), take(source, JITTERED)
    still = dataclasses.replace(PLAIN, scale_jitter=(1.0, 1.0), colour_jitter=0.0)
    for batch, other, same in zip(plain, jittered, take(source, still), strict=True):
        assert all(map(np.array_equal, batch, same))
        np.testing.assert_array_equal(batch.index, other.index)
        np.testing.assert_array_equal(batch.flip, other.flip)
        assert np.any(batch.images != other.images)
        assert np.all(other.sizes <= other.images.shape[1:3])
        limit = np.tile(other.sizes[:, None, ::-1], 2)
        assert np.all((other.boxes >= 0) & (other.boxes <= limit))
    sizes = np.concatenate([batch.sizes for batch in jittered])
    assert len(np.unique(sizes, axis=0)) > 6
    scored = [eval_batches(source, config) for config in (PLAIN, JITTERED)]
    for batch, other in zip(*scored, strict=True):
        assert all(map(np.array_equal, batch, other))


def test_rows_are_for_the_boxes_that_a_crop_leaves(source):
    few, larger = (
        dataclasses.replace(JITTERED, max_boxes=n, scale_jitter=(1.0, 3.0)) for n in (1, 8)
    )
    for one, whole in zip(take(source, few), take(source, larger), strict=True):
        np.testing.assert_array_equal(one.boxes, whole.boxes[:, :1])
        np.testing.assert_array_equal(one.valid, whole.valid[:, :1])


def test_an_epoch_later_the_same_image_has_other_numbers(source):
    found = {}
    smaller = dataclasses.replace(JITTERED, scale_jitter=(0.3, 0.9))  # no canvas cuts them off
    for batch in take(source, smaller, 12):
        for index, size in zip(batch.index, batch.sizes, strict=True):
            found.setdefault(int(index), []).append(tuple(size))
    assert all(len(set(sizes)) > 1 for index, sizes in found.items() if index >= 0)
    assert sum(map(len, found.values())) == 12 * 4
