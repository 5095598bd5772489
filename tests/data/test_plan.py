from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from drkd_jax.data import pipeline
from drkd_jax.data.pipeline import PipelineConfig, train_loader
from drkd_jax.data.plan import BatchPlan, Counter, padding_share, steps_per_epoch, train_fits
from drkd_jax.data.sources import Source, open_source
from drkd_jax.types import Batch

INDICES = np.arange(100, 123)
CANVAS_OF = np.arange(23) % 3 % 2  # 0 1 0 | 0 1 0 ...: 15 or 16 of canvas 0


def _plan(**changes) -> BatchPlan:
    settings = {"batch_size": 4, "seed": 3, "flip": 0.5} | changes
    return BatchPlan(INDICES, CANVAS_OF, **settings)


def test_every_image_once_an_epoch_and_one_canvas_a_batch():
    plan = _plan()
    counts = np.bincount(CANVAS_OF)
    assert plan.steps_per_epoch == sum(-(-counts // 4))
    for epoch in range(3):
        seen = []
        for step in range(plan.steps_per_epoch):
            batch = plan.batch(epoch * plan.steps_per_epoch + step)
            real = batch.indices[batch.indices >= 0]
            assert len(batch.indices) == 4
            assert set(CANVAS_OF[real - 100]) == {batch.canvas}
            assert not batch.flip[batch.indices < 0].any()
            seen += real.tolist()
        assert sorted(seen) == INDICES.tolist()


def test_random_access_equals_walking():
    plan = _plan()
    numbers = [40, 0, 13, 2, 40, 7]
    walked = [_plan().batch(i) for i in range(41)]
    for number in numbers:
        batch = plan.batch(number)
        np.testing.assert_array_equal(batch.indices, walked[number].indices)
        np.testing.assert_array_equal(batch.flip, walked[number].flip)
        assert batch.canvas == walked[number].canvas


def _epoch(plan: BatchPlan, epoch: int) -> np.ndarray:
    n = plan.steps_per_epoch
    return np.concatenate([plan.batch(epoch * n + i).indices for i in range(n)])


def test_epochs_and_seeds_differ():
    assert not np.array_equal(_epoch(_plan(), 0), _epoch(_plan(), 1))
    assert not np.array_equal(_epoch(_plan(), 0), _epoch(_plan(seed=4), 0))


def test_batches_of_canvases_are_mixed():
    plan = BatchPlan(np.arange(64), np.arange(64) // 32, 4, seed=0)
    order = [plan.batch(i).canvas for i in range(16)]
    assert order != sorted(order)
    assert order != sorted(order, reverse=True)


def _flips(plan: BatchPlan) -> dict[int, bool]:
    batches = [plan.batch(i) for i in range(plan.steps_per_epoch)]
    return {
        int(i): bool(f) for b in batches for i, f in zip(b.indices, b.flip, strict=True) if i >= 0
    }


def test_flips_belong_to_images_not_to_batches():
    assert _flips(_plan()) == _flips(_plan(batch_size=7))
    assert set(_flips(_plan()).values()) == {True, False}
    assert set(_flips(_plan(flip=0.0)).values()) == {False}
    assert set(_flips(_plan(flip=1.0)).values()) == {True}


def _chances(plan: BatchPlan, epoch: int = 0) -> np.ndarray:
    """The random numbers of each image, in the source's order."""
    n = plan.steps_per_epoch
    batches = [plan.batch(epoch * n + i) for i in range(n)]
    indices, rows = (np.concatenate([b[k] for b in batches]) for k in (1, 3))
    return rows[indices >= 0][np.argsort(indices[indices >= 0])]


def test_jitter_has_numbers_of_its_own_by_seed_epoch_and_image():
    plain, plan = _plan(shuffle=False), _plan(shuffle=False, jitter=True)
    found = _chances(plan)
    # All are different, so no two draws share a generator.
    seen = [found, _chances(plan, 1), _chances(_plan(shuffle=False, jitter=True, seed=4))]
    assert len(np.unique(seen)) == np.size(seen)
    assert _flips(plan) == _flips(plain)
    flips = [_flips(plain)[i] for i in INDICES]
    assert not any(np.array_equal(row < 0.5, flips) for row in (found[:, 0], found.flat[:23]))
    for other in (_plan(jitter=True), _plan(jitter=True, batch_size=7)):
        np.testing.assert_array_equal(_chances(other), found)


@pytest.mark.parametrize("batch_size", [1, 5, 30])
def test_unshuffled_keeps_order_within_canvases(batch_size):
    plan = BatchPlan(INDICES, CANVAS_OF, batch_size, shuffle=False)
    seen = _epoch(plan, 0)
    seen = seen[seen >= 0]
    expected = np.concatenate([INDICES[CANVAS_OF == 0], INDICES[CANVAS_OF == 1]])
    np.testing.assert_array_equal(seen, expected)


TWO = ((64, 96), (96, 64))
SIX = ((64, 88), (64, 96), (72, 72), (88, 64), (96, 64), (96, 96))
CONFIG = PipelineConfig(
    batch_size=4, canvases=TWO, shorter=64, longer=96, max_boxes=3, num_threads=2, prefetch=2
)


@pytest.fixture(scope="module")
def source() -> Source:
    return open_source("shapes:60")


def epoch(source: Source, config: PipelineConfig) -> tuple[list[Batch], dict[str, float]]:
    loader = train_loader(source, config)
    batches = [next(loader) for _ in range(steps_per_epoch(source, config))]
    return batches, loader.counts()


@pytest.mark.parametrize(
    ("canvases", "resize"),
    [
        *((canvases, "mmdet") for canvases in (TWO, SIX, ((128, 128),))),
        *((SIX, rule) for rule in ("torchvision", "stretch")),
    ],
)
def test_padding_is_what_the_batches_show(source, canvases, resize):
    config = dataclasses.replace(CONFIG, canvases=canvases, resize=resize)
    batches, counts = epoch(source, config)
    canvas = sum(b.images.shape[0] * b.images.shape[1] * b.images.shape[2] for b in batches)
    covered = sum(int(np.prod(b.sizes, axis=1).sum()) for b in batches)
    assert counts["padding"] == pytest.approx(1 - covered / canvas, abs=1e-12)
    assert counts["padding"] == pytest.approx(padding_share(source, config), abs=1e-12)


def test_more_canvases_pad_less_and_each_image_takes_the_smallest_that_holds_it(source):
    config = dataclasses.replace(CONFIG, canvases=SIX, batch_size=1)
    assert padding_share(source, config) < padding_share(
        source, dataclasses.replace(CONFIG, batch_size=1)
    )
    used = set()
    for batch in epoch(source, config)[0]:
        canvas = batch.images.shape[1:3]
        holding = [c for c in SIX if np.all(batch.sizes[0] <= c)]
        assert np.prod(canvas) == min(np.prod(c) for c in holding)
        used.add(canvas)
    assert len(used) >= 4


def test_buckets_keep_batches_a_function_of_their_number(source):
    config = dataclasses.replace(CONFIG, canvases=SIX)
    batches, _ = epoch(source, config)
    seen = sorted(int(i) for b in batches for i in b.index[b.image_valid])
    assert seen == [i for i in range(len(source)) if source.meta(i).num_boxes]
    for number in (7, 2, 11):
        fresh = train_loader(source, dataclasses.replace(config, num_threads=0))
        fresh.set_state({"next_batch": number})
        for a, b in zip(next(fresh), batches[number], strict=True):
            np.testing.assert_array_equal(a, b)


def test_workers_change_no_batch_of_any_bucket(source):
    config = dataclasses.replace(CONFIG, canvases=SIX)
    batches, _ = epoch(source, config)
    loader = train_loader(source, dataclasses.replace(config, num_workers=1))
    for batch in batches:
        for a, b in zip(next(loader), batch, strict=True):
            np.testing.assert_array_equal(a, b)
    assert loader.counts()["loader_rate"] > 0  # the workers' own clocks
    loader.close()


def test_boxes_without_a_row_are_counted(source):
    batches, counts = epoch(source, CONFIG)
    metas = [source.meta(int(i)) for b in batches for i in b.index[b.image_valid]]
    wanted = sum(max(0, meta.num_boxes - 3) for meta in metas)
    assert wanted > 0
    assert counts["boxes_past_max"] * len(batches) == pytest.approx(wanted)
    held = sum(int(b.valid.sum()) for b in batches)
    assert held + wanted == sum(meta.num_boxes for meta in metas)


def test_counts_are_those_since_the_last_call(source):
    loader = train_loader(source, CONFIG)
    assert loader.counts() == {}
    next(loader)
    assert set(loader.counts()) == {"padding", "boxes_past_max", "loader_rate"}
    assert loader.counts() == {}
    next(loader)
    loader.set_state({"next_batch": 0})
    assert loader.counts() == {}


def test_every_host_counts_the_whole_batch(source):
    _, whole = epoch(source, CONFIG)
    loader = train_loader(source, CONFIG, process_index=1, process_count=2)
    for _ in range(steps_per_epoch(source, CONFIG)):
        next(loader)
    half = loader.counts()
    assert half["padding"] == whole["padding"]
    assert half["boxes_past_max"] == whole["boxes_past_max"]


def test_the_rate_is_that_of_the_readers(source, monkeypatch):
    ticks = iter(np.arange(0, 1e6, 0.5))
    monkeypatch.setattr(pipeline.time, "perf_counter", lambda: float(next(ticks)))
    loader = train_loader(source, dataclasses.replace(CONFIG, num_threads=0))
    for _ in range(3):
        next(loader)
    assert loader.counts()["loader_rate"] == pytest.approx(4 / 0.5)
    for prefetch, readers in ((3, 6), (2, 4)):  # threads of each of two processes
        config = dataclasses.replace(CONFIG, num_threads=3, prefetch=prefetch, num_workers=2)
        counter = Counter(train_fits(source, config), config)
        counter.add(loader._reader.plan.batch(0), 4, 0.5)
        assert counter.take()["loader_rate"] == pytest.approx(readers * 4 / 0.5, rel=1e-15)
