from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from drkd_jax.data.pipeline import PipelineConfig, padding_share, steps_per_epoch, train_loader
from drkd_jax.data.sources import Source, open_source
from drkd_jax.types import Batch

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


@pytest.mark.parametrize("canvases", [TWO, SIX, ((128, 128),)])
def test_padding_is_what_the_batches_show(source, canvases):
    config = dataclasses.replace(CONFIG, canvases=canvases)
    batches, counts = epoch(source, config)
    canvas = sum(b.images.shape[0] * b.images.shape[1] * b.images.shape[2] for b in batches)
    covered = sum(int(np.prod(b.sizes, axis=1).sum()) for b in batches)
    assert counts["padding"] == pytest.approx(1 - covered / canvas, abs=1e-12)
    assert counts["padding"] == pytest.approx(padding_share(source, config), abs=1e-12)


def test_more_canvases_pad_less_and_each_picture_takes_the_smallest_that_holds_it(source):
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
    seen = sorted(int(i) for b in batches for i in b.index[b.picture_valid])
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
    metas = [source.meta(int(i)) for b in batches for i in b.index[b.picture_valid]]
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
    from drkd_jax.data import reader

    ticks = iter(np.arange(0, 1e6, 0.5))
    monkeypatch.setattr(reader.time, "perf_counter", lambda: float(next(ticks)))
    loader = train_loader(source, dataclasses.replace(CONFIG, num_threads=0))
    for _ in range(3):
        next(loader)
    assert loader.counts()["loader_rate"] == pytest.approx(4 / 0.5)
