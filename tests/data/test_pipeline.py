from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from drkd_jax.data import config as config_module
from drkd_jax.data.checking.findings import find
from drkd_jax.data.pipeline import PipelineConfig, eval_batches, train_loader
from drkd_jax.data.plan import steps_per_epoch, train_fits
from drkd_jax.data.sources import Source, open_source
from drkd_jax.errors import UserError
from drkd_jax.types import Batch

CONFIG = PipelineConfig(
    batch_size=4,
    canvases=((64, 96), (96, 64)),
    shorter=64,
    longer=96,
    max_boxes=8,
    num_threads=2,
    prefetch=2,
)


@pytest.fixture(scope="module")
def source() -> Source:
    return open_source("shapes:30")


def take(loader, count: int) -> list[Batch]:
    return [next(loader) for _ in range(count)]


def same(a: Batch, b: Batch) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_batch_holds_what_its_records_say(source):
    batch = next(train_loader(source, CONFIG))
    assert batch.images.shape[1:] in {(64, 96, 3), (96, 64, 3)}
    for row in np.flatnonzero(batch.image_valid):
        record = source.record(int(batch.index[row]))
        h, w = batch.sizes[row]
        assert np.all(batch.images[row, h:] == 0)
        assert np.all(batch.images[row, :, w:] == 0)
        assert batch.images[row, :h, :w].any()
        np.testing.assert_allclose(
            batch.scale[row], [w / record.image.shape[1], h / record.image.shape[0]], rtol=1e-6
        )
        n = len(record.boxes)
        assert batch.valid[row].tolist() == [i < n for i in range(8)]
        expected = record.boxes * np.tile(batch.scale[row], 2)
        np.testing.assert_allclose(batch.boxes[row, :n], expected, atol=1e-4)
        np.testing.assert_array_equal(batch.labels[row, :n], record.labels)
        assert not batch.boxes[row, n:].any()


def test_dtypes(source):
    batch = next(train_loader(source, CONFIG))
    wanted = ("uint8", "int32", "bool", "float32", "int32", "bool", "bool", "int32", "float32")
    assert tuple(str(part.dtype) for part in batch) == wanted


def test_torchvision_s_rule_gives_floats(source):
    config = dataclasses.replace(CONFIG, resize="torchvision")
    cut, rounded = (next(iter(eval_batches(source, one))) for one in (config, CONFIG))
    assert cut.images.dtype == np.float32
    assert np.any(cut.images % 1)  # interpolated, and not rounded again
    np.testing.assert_array_equal(cut.index, rounded.index)
    assert np.all((cut.sizes <= rounded.sizes) & (cut.sizes >= rounded.sizes - 1))
    for image, (height, width) in zip(cut.images, cut.sizes, strict=True):
        assert image[height - 1, :width].any()
        assert not image[height:].any()


def test_threads_and_workers_change_nothing(source):
    alone = take(train_loader(source, dataclasses.replace(CONFIG, num_threads=0)), 6)
    threads = take(train_loader(source, dataclasses.replace(CONFIG, num_threads=3)), 6)
    assert all(map(same, alone, threads))
    loader = train_loader(source, dataclasses.replace(CONFIG, num_workers=1))
    # Batches of workers are in shared memory, which is released with the loader.
    assert all(same(a, next(loader)) for a in alone)
    loader.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_workers_leave_signals_to_the_run(source, number):
    """The run ends with a checkpoint, and may need batches until then."""
    config = dataclasses.replace(CONFIG, num_threads=1, prefetch=1, num_workers=1)
    alone = take(train_loader(source, dataclasses.replace(CONFIG, num_threads=0)), 8)
    loader = train_loader(source, config)
    first = same(alone[0], next(loader))
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, number)
    assert first
    assert all(same(batch, next(loader)) for batch in alone[1:])
    loader.close()
    assert not worker.is_alive()


ORPHAN = """
import multiprocessing, os, signal
from drkd_jax.data.pipeline import PipelineConfig, train_loader
from drkd_jax.data.sources import open_source

if __name__ == "__main__":
    sizes = {"canvases": ((64, 96), (96, 64)), "shorter": 64, "longer": 96}
    config = PipelineConfig(batch_size=4, num_threads=1, num_workers=1, prefetch=1, **sizes)
    loader = train_loader(open_source("shapes:30"), config)
    next(loader)
    print(multiprocessing.active_children()[0].pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def lives(process: int) -> bool:
    """Whether a process runs; one in state Z (exit code not fetched yet) has ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_workers_end_with_a_run_that_is_killed(tmp_path):
    script = tmp_path / "orphan.py"
    script.write_text(ORPHAN)
    run = subprocess.Popen(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    worker = int(run.stdout.readline())
    assert run.wait(timeout=60) == -signal.SIGKILL
    end = time.monotonic() + 30
    while time.monotonic() < end and lives(worker):
        time.sleep(0.05)
    assert not lives(worker)


def test_goes_on_from_a_saved_state(source):
    n = steps_per_epoch(source, CONFIG)
    loader = train_loader(source, CONFIG)
    take(loader, n - 2)
    state = json.loads(json.dumps(loader.get_state()))
    expected = take(loader, 4)  # over the end of the epoch
    fresh = train_loader(source, dataclasses.replace(CONFIG, num_threads=0))
    fresh.set_state(state)
    assert all(map(same, take(fresh, 4), expected))
    loader.set_state(state)  # back, in the same loader
    assert all(map(same, take(loader, 4), expected))


def test_hosts_share_a_batch(source):
    whole = take(train_loader(source, CONFIG), 5)
    parts = [
        take(train_loader(source, CONFIG, process_index=i, process_count=2), 5) for i in range(2)
    ]
    for one, *halves in zip(whole, *parts, strict=True):
        joined = Batch(*(np.concatenate(pair) for pair in zip(*halves, strict=True)))
        assert same(one, joined)


@pytest.mark.parametrize(("count", "nearest"), [(3, "3 or 6"), (8, "take 8")])
def test_a_batch_that_does_not_divide_is_refused(source, count, nearest):
    with pytest.raises(UserError, match=nearest):
        train_loader(source, CONFIG, process_count=count)


def test_an_epoch_leaves_out_empty_images_only(source):
    batches = take(train_loader(source, CONFIG), steps_per_epoch(source, CONFIG))
    seen = sorted(int(i) for b in batches for i in b.index[b.image_valid])
    assert seen == [i for i in range(len(source)) if source.meta(i).num_boxes]
    everything = dataclasses.replace(CONFIG, drop_empty=False)
    batches = take(train_loader(source, everything), steps_per_epoch(source, everything))
    assert sum(int(b.image_valid.sum()) for b in batches) == len(source)


def test_drop_empty_knows_crowd_and_small_images(coco_folder):
    small = coco_folder.content["images"][0]
    source = open_source(coco_folder.spec)
    batch = next(train_loader(source, CONFIG))
    later = next(iter(train_loader(source, CONFIG)))
    assert {3, 7} >= {source.meta(int(i)).image_id for i in batch.index[batch.image_valid]}
    assert steps_per_epoch(source, CONFIG) == 2  # a landscape and a portrait image are left
    assert same(batch, later)
    for height, steps in ((32, 2), (31, 1)):
        small["height"] = height
        coco_folder.write()
        assert steps_per_epoch(open_source(coco_folder.spec), CONFIG) == steps


def test_crowd_boxes_are_not_trained_on(coco_folder):
    config = dataclasses.replace(CONFIG, batch_size=1)
    source = open_source(coco_folder.spec)
    for batch in eval_batches(source, config):
        assert batch.valid.sum() == source.meta(int(batch.index[0])).num_boxes


def test_boxes_past_the_rows_are_counted_and_told(coco_folder):
    config = dataclasses.replace(CONFIG, batch_size=2, max_boxes=1)
    source = open_source(coco_folder.spec)
    assert train_fits(source, config).left_out.sum() == 2
    assert train_fits(source, CONFIG).left_out.sum() == 0
    told = "2 images have more than data.max_boxes = 1 boxes: training leaves 2 boxes per epoch"
    assert any(told in finding.text for finding in find(source, max_boxes=config.max_boxes))
    loader = train_loader(source, config)
    for batch in take(loader, 2):
        for row in np.flatnonzero(batch.image_valid):
            record = source.record(int(batch.index[row]))
            first = record.boxes[0] * np.tile(batch.scale[row], 2)
            np.testing.assert_allclose(batch.boxes[row, 0], first, rtol=1e-5)


def test_nothing_left_to_train_on(coco_folder):
    coco_folder.content["annotations"] = []
    coco_folder.write()
    with pytest.raises(UserError, match="no box to train on"):
        train_loader(open_source(coco_folder.spec), CONFIG)


@pytest.mark.parametrize("num_threads", [0, 2])
def test_a_bad_image_stops_with_its_name(coco_folder, num_threads):
    for path in coco_folder.images.iterdir():
        path.write_bytes(b"no image")
    config = dataclasses.replace(CONFIG, num_threads=num_threads)
    loader = train_loader(open_source(coco_folder.spec), config)
    with pytest.raises(UserError, match=r"[ab]\.jpg: cannot be decoded"):
        next(loader)


@pytest.mark.parametrize("process_count", [1, 2])
def test_evaluation_sees_each_image_once(source, process_count):
    walks = [
        list(eval_batches(source, CONFIG, process_index=i, process_count=process_count))
        for i in range(process_count)
    ]
    assert len({len(walk) for walk in walks}) == 1
    for same_step in zip(*walks, strict=True):  # every host is at the same canvas
        assert len({batch.images.shape for batch in same_step}) == 1
    batches = [batch for walk in walks for batch in walk]
    seen = sorted(int(i) for b in batches for i in b.index[b.image_valid])
    assert seen == list(range(len(source)))
    assert not any(b.flip.any() for b in batches)


def test_filling_images_are_empty(source):
    *_, last = eval_batches(source, dataclasses.replace(CONFIG, batch_size=19))
    filling = ~last.image_valid
    assert filling.any()
    assert np.all(last.index[filling] == -1)
    for part in (last.images, last.sizes, last.boxes, last.valid):
        assert not part[filling].any()


def test_max_images(source):
    batches = eval_batches(source, CONFIG, max_images=5)
    assert batches.num_images == 5
    assert batches.image_ids == tuple(source.meta(i).image_id for i in range(5))
    for _ in range(2):  # can be walked again
        seen = sorted(int(i) for b in batches for i in b.index[b.image_valid])
        assert seen == list(range(5))
    assert len(list(batches)) == len(batches)


@pytest.mark.parametrize(("cores", "threads"), [(1, 4), (6, 6), (96, 16)])
def test_threads_follow_the_cores(monkeypatch, cores, threads):
    monkeypatch.setattr(
        config_module.os, "sched_getaffinity", lambda _: set(range(cores)), raising=False
    )
    made = PipelineConfig(batch_size=4, canvases=((64, 64),), shorter=64, longer=64)
    assert (made.num_threads, made.prefetch) == (threads, threads)


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ({"num_threads": 32}, (32, 32)),
        ({"num_threads": 2}, (2, 8)),
        ({"num_threads": None, "prefetch": None}, (8, 8)),
        ({"num_threads": 32, "prefetch": 3}, (32, 3)),
    ],
)
def test_no_thread_that_a_config_asks_for_is_without_work(monkeypatch, said, wanted):
    eight = set(range(8))
    monkeypatch.setattr(config_module.os, "sched_getaffinity", lambda _: eight, raising=False)
    data = {"canvases": ((64, 64),), "shorter": 64, "longer": 64, **said}
    made = config_module.read_pipeline({"seed": 0, "data": data}, 4)
    assert (made.num_threads, made.prefetch) == wanted


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"batch_size": 0}, "batch_size = 0"),
        ({"flip": 1.5}, "flip = 1.5"),
        ({"canvases": ()}, "canvases"),
        ({"scale_jitter": (1.5, 0.5)}, "scale_jitter = .*the smaller one first"),
        ({"colour_jitter": 2.0}, "colour_jitter = 2"),
        ({"longer": 10}, "longer = 10"),
        ({"num_threads": -1}, "num_threads = -1"),
        ({"resize": "pil"}, 'resize = "pil": one of mmdet, torchvision'),
    ],
)
def test_settings_are_checked(changes, told):
    with pytest.raises(UserError, match=told):
        dataclasses.replace(CONFIG, **changes)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("canvases", (800, 1344), r"canvases = \(800, 1344\): expected .* pairs"),
        ("canvases", ((64, 96, 3),), "expected .* pairs"),
        ("canvases", 64, "expected .* pairs"),
        ("canvases", ((64.5, 96),), "expected .* pairs"),
        ("scale_jitter", 0.5, "scale_jitter = 0.5: two factors"),
        ("scale_jitter", ("a", "b"), "two factors"),
    ],
)
def test_what_a_recipe_may_hold_is_checked(key, value, told):
    """Also without the run-time type checks that the tests use."""
    made = object.__new__(PipelineConfig)
    vars(made).update(vars(CONFIG) | {key: value})
    with pytest.raises(UserError, match=told):
        made.__post_init__()
