from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest

from drkd_jax.data.pipeline import PipelineConfig, eval_batches, train_loader
from drkd_jax.data.plan import steps_per_epoch
from drkd_jax.data.skipped import SkipList
from drkd_jax.data.sources import open_source
from drkd_jax.data.sources.records import Source
from drkd_jax.errors import UserError

CONFIG = PipelineConfig(
    batch_size=4,
    canvases=((32, 48), (48, 32)),
    shorter=32,
    longer=48,
    max_boxes=4,
    num_threads=2,
    on_error="skip",
)
COUNT = 120
BROKEN = 17


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """120 images with a box each, one of them broken in the second folder."""
    root = tmp_path_factory.mktemp("many")
    rng = np.random.default_rng(0)
    for folder in ("whole", "broken"):
        (root / folder).mkdir()
    for i in range(COUNT):
        h, w = (36, 48) if i % 3 else (48, 36)
        data = cv2.imencode(".jpg", rng.integers(0, 256, (h, w, 3), np.uint8))[1].tobytes()
        (root / "whole" / f"{i}.jpg").write_bytes(data)
        (root / "broken" / f"{i}.jpg").write_bytes(data[:99] if i == BROKEN else data)
    _write(root, {})
    return root


def _content() -> dict:
    sizes = [(36, 48) if i % 3 else (48, 36) for i in range(COUNT)]
    return {
        "images": [
            {"id": 1000 + i, "file_name": f"{i}.jpg", "height": h, "width": w}
            for i, (h, w) in enumerate(sizes)
        ],
        "annotations": [
            {"id": i + 1, "image_id": 1000 + i, "category_id": 1, "bbox": [2, 3, 20, 20]}
            for i in range(COUNT)
        ],
        "categories": [{"id": 1, "name": "thing"}],
    }


def _write(root: Path, changes: dict[int, dict]) -> Path:
    content = _content()
    for i, change in changes.items():
        content["annotations"][i] |= change
    path = root / f"instances_{len(changes)}.json"
    path.write_text(json.dumps(content))
    return path


def _source(root: Path, folder: str = "broken", changes: int = 0, on_error: str = "skip"):
    return open_source(f"coco:{root / folder}:{root / f'instances_{changes}.json'}", on_error)


def take(loader, count: int) -> list:
    return [next(loader) for _ in range(count)]


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("settings", [{"num_threads": 0}, {"num_threads": 3}, {"num_workers": 1}])
def test_a_skipped_image_leaves_everything_else_in_its_place(root, tmp_path, settings):
    config = dataclasses.replace(CONFIG, **settings)
    path = tmp_path / "skipped.jsonl"
    loader = train_loader(_source(root), config, skipped=path)
    whole = train_loader(_source(root, "whole"), dataclasses.replace(CONFIG, num_threads=0))
    met = 0
    for _ in range(steps_per_epoch(_source(root), config)):
        ours, theirs = next(loader), next(whole)
        gone = theirs.index == BROKEN
        met += gone.sum()
        assert not ours.image_valid[gone].any()
        assert np.all(ours.index[gone] == -1)
        for a, b in zip(ours, theirs, strict=True):
            assert a.shape == b.shape
            np.testing.assert_array_equal(a[~gone], b[~gone])
        for part in (ours.images, ours.sizes, ours.boxes, ours.valid, ours.flip):
            assert not part[gone].any()
    loader.close()
    assert met == 1
    (line,) = _lines(path)
    assert (line["index"], line["image_id"]) == (BROKEN, 1000 + BROKEN)
    assert "17.jpg: cannot be decoded: it begins as a JPEG" in line["reason"]


def test_a_second_run_does_not_list_it_again(root, tmp_path, caplog):
    path = tmp_path / "skipped.jsonl"
    path.write_bytes(b'{"source": "another", "index": 17, "reason": "x"}\n\xff\n7\n{"sour')
    for run in range(2):
        loader = train_loader(_source(root), CONFIG, skipped=path)
        with caplog.at_level(logging.WARNING):
            for _ in range(2 * steps_per_epoch(_source(root), CONFIG)):  # met twice
                next(loader)
        assert loader.num_skipped == 1
        assert "image skipped (1 so far)" in caplog.text
        assert caplog.text.count("image skipped") == run + 1  # once a run, not once an epoch
    assert len(_lines_that_can_be_read(path)) == 2


def _lines_that_can_be_read(path: Path) -> list[str]:
    return [line for line in path.read_text("latin-1").splitlines() if line.endswith("}")]


def _without_two(root: Path, folder: Path) -> Source:
    """The 120 images except 3 and 4."""
    folder.mkdir()
    for path in (root / "whole").iterdir():
        if path.stem not in ("3", "4"):
            (folder / path.name).symlink_to(path)
    return open_source(f"coco:{folder}:{root / 'instances_0.json'}", "skip")


def test_more_than_one_percent_stops(root, tmp_path):
    source = _without_two(root, folder := tmp_path / "images")
    skipped = tmp_path / "skipped.jsonl"
    loader = train_loader(source, CONFIG, skipped=skipped)
    with pytest.raises(UserError, match=r"2 of 120 images cannot be read, more than 1%.*\.jpg"):
        take(loader, 100)
    assert {line["index"] for line in _lines(skipped)} == {3, 4}
    for name in ("3.jpg", "4.jpg"):  # repaired: the old list does not stop the next run
        (folder / name).symlink_to(root / "whole" / name)
    loader = train_loader(source, CONFIG, skipped=skipped)
    for _ in range(steps_per_epoch(source, CONFIG)):
        next(loader)
    assert loader.num_skipped == 0


def test_one_percent_itself_goes_on(root, tmp_path):
    source = _without_two(root, tmp_path / "images")
    SkipList(source, 200, None).add(np.array([3, 4]))
    with pytest.raises(UserError, match=r"2 of 199 images cannot be read, more than 1%"):
        SkipList(source, 199, None).add(np.array([3, 4]))


def test_what_other_hosts_met_counts_on_all(root, tmp_path):
    source = _without_two(root, tmp_path / "images")
    lists = [SkipList(source, len(source), tmp_path / f"{host}.jsonl") for host in range(2)]
    for index, skips in zip((3, 4), lists, strict=True):
        skips.add(np.array([index]))  # each by itself is under 1 %

    def allgather(_):
        return np.unique([*lists[0].reasons, *lists[1].reasons])

    for skips in lists:
        with pytest.raises(UserError, match=r"2 of 120 images cannot be read, more than 1%"):
            skips.share(allgather)
    assert {line["index"] for line in _lines(tmp_path / "0.jsonl")} == {3, 4}


@pytest.mark.parametrize("process_index", [0, 1])
def test_the_first_host_alone_warns(root, caplog, process_index):
    """It also warns of the other hosts' images, once they have reported them."""
    hosts = {"process_index": process_index, "process_count": 2}
    batches = eval_batches(_source(root), CONFIG, **hosts)
    with caplog.at_level(logging.WARNING):
        list(batches)
        batches.share_skipped(lambda _: np.array([BROKEN]))
    assert batches.num_skipped == 1
    assert caplog.text.count("image skipped") == (process_index == 0)


def test_evaluation_keeps_a_skipped_image_among_those_that_count(root, tmp_path):
    path = tmp_path / "skipped.jsonl"
    batches = eval_batches(_source(root), CONFIG, skipped=path)
    seen = sorted(int(i) for batch in batches for i in batch.index[batch.image_valid])
    assert seen == [i for i in range(COUNT) if i != BROKEN]
    assert len(batches.image_ids) == COUNT
    assert batches.num_skipped == 1
    assert [line["index"] for line in _lines(path)] == [BROKEN]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_stop_names_the_file_also_from_a_worker(root, num_workers):
    config = dataclasses.replace(CONFIG, on_error="stop", num_workers=num_workers)
    loader = train_loader(_source(root), config)
    with pytest.raises(UserError, match=r"17\.jpg: cannot be decoded"):
        take(loader, 100)
    loader.close()


def test_entries_with_a_fault_are_left_out_and_listed(root, tmp_path):
    _write(root, {5: {"bbox": [1, 2, float("nan"), 4]}, 9: {"image_id": 7}})
    source = _source(root, "whole", changes=2)
    assert [str(fault) for fault in source.faults] == [
        "annotation id 6: bbox [1, 2, nan, 4] is not four finite numbers (x, y, width, height)",
        "annotation id 10: unknown image_id 7",
    ]
    assert source.describe()["boxes"] == COUNT - 2
    path = tmp_path / "skipped.jsonl"
    for _ in range(2):
        train_loader(source, CONFIG, skipped=path)
    assert [line["entry"][:13] for line in _lines(path)] == ["annotation id"] * 2
    with pytest.raises(UserError, match=r"id 6: bbox .*; 2 entries have faults in all"):
        _source(root, "whole", changes=2, on_error="stop")


def test_too_many_faults_or_a_lost_class_stop(root, tmp_path):
    _write(root, {i: {"bbox": [1, 2, 3]} for i in range(3)})
    with pytest.raises(UserError, match="3 of 240 entries have a fault, more than 1%"):
        _source(root, changes=3)
    content = _content()
    content["categories"].append({"id": [2], "name": "other"})
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    with pytest.raises(
        UserError, match=r"category id \[2\]: id \[2\] is not a whole number; a class"
    ):
        open_source(f"coco:{root / 'whole'}:{path}", "skip")


@pytest.mark.parametrize("number", [1004, "1004"])
def test_every_image_of_an_ambiguous_id_goes_with_its_boxes(root, tmp_path, number):
    content = _content()
    content["images"][5]["id"] = content["annotations"][5]["image_id"] = number  # of image 4
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    source = open_source(f"coco:{root / 'whole'}:{path}", "skip")
    assert len(source) == COUNT - 2
    assert source.describe()["boxes"] == COUNT - 2
    assert not {"4.jpg", "5.jpg"} & set(source.table.names)
    gone = [str(fault) for fault in source.faults]
    assert sum("occurs twice" in fault for fault in gone) == 2
    for annotation in (5, 6):
        assert f"annotation id {annotation}: its image, id 1004, is left out" in gone


@pytest.mark.parametrize("first", [True, False])
def test_an_id_of_a_broken_entry_is_ambiguous_too(root, tmp_path, first):
    """Boxes with this id may belong to the unreadable entry."""
    content = _content()
    twin = {**content["images"][5], "id": 1004, "height": 0}
    content["images"].insert(0 if first else COUNT, twin)
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    source = open_source(f"coco:{root / 'whole'}:{path}", "skip")
    assert "4.jpg" not in source.table.names
    assert (len(source), source.describe()["boxes"]) == (COUNT - 1, COUNT - 1)
    assert "annotation id 5: its image, id 1004, is left out" in map(str, source.faults)


def test_the_same_entry_again_is_not_ambiguous(root, tmp_path):
    content = _content()
    content["images"].append(content["images"][4])
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    source = open_source(f"coco:{root / 'whole'}:{path}", "skip")
    assert (len(source), source.describe()["boxes"]) == (COUNT, COUNT)
    assert len(source.faults) == 1


def test_the_list_must_be_writable(root, tmp_path):
    loader = train_loader(_source(root), CONFIG, skipped=tmp_path / "no" / "skipped.jsonl")
    with pytest.raises(UserError, match=r"skipped\.jsonl: cannot be written"):
        take(loader, 100)


def test_only_stop_or_skip():
    with pytest.raises(UserError, match='on_error = "ignore"'):
        dataclasses.replace(CONFIG, on_error="ignore")
