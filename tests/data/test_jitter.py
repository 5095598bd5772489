from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from drkd_jax.data.jitter import MIN_VISIBLE, crop_boxes, cut_out, recolour, window
from drkd_jax.data.pipeline import PipelineConfig, eval_batches, train_loader
from drkd_jax.data.sources import open_source
from drkd_jax.data.transforms import scale_boxes

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
    assert rounded.min() == 0
    assert rounded.max() == 255


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


def test_jitter_changes_pictures_and_nothing_of_the_plan(source):
    plain, jittered = take(source, PLAIN), take(source, JITTERED)
    still = dataclasses.replace(PLAIN, scale_jitter=(1.0, 1.0), colour_jitter=0.0)
    for batch, other, same in zip(plain, jittered, take(source, still), strict=True):
        assert all(map(np.array_equal, batch, same))
        np.testing.assert_array_equal(batch.index, other.index)
        np.testing.assert_array_equal(batch.flip, other.flip)
        assert np.any(batch.images != other.images)
        limit = np.tile(other.sizes[:, None, ::-1], 2)
        assert np.all((other.boxes >= 0) & (other.boxes <= limit))
    sizes = np.concatenate([batch.sizes for batch in jittered])
    assert len(np.unique(sizes, axis=0)) > 6
    scored = [eval_batches(source, config) for config in (PLAIN, JITTERED)]
    for batch, other in zip(*scored, strict=True):
        assert all(map(np.array_equal, batch, other))


def test_an_epoch_later_the_same_picture_has_other_numbers(source):
    found = {}
    smaller = dataclasses.replace(JITTERED, scale_jitter=(0.3, 0.9))  # no canvas cuts them off
    for batch in take(source, smaller, 12):
        for index, size in zip(batch.index, batch.sizes, strict=True):
            found.setdefault(int(index), []).append(tuple(size))
    assert all(len(set(sizes)) > 1 for index, sizes in found.items() if index >= 0)
    assert sum(map(len, found.values())) == 12 * 4
