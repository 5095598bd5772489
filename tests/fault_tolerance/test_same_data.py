"""Data that changed since a run began, and the messages at its next start."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from drkd_jax.data.checking.check import check
from drkd_jax.data.checking.findings import find
from drkd_jax.data.pipeline import PipelineConfig
from drkd_jax.data.sources import open_source
from drkd_jax.data.sources.records import fingerprint
from drkd_jax.errors import UserError
from drkd_jax.fault_tolerance import same_run
from drkd_jax.fault_tolerance.same_run import (
    changed_data,
    changed_scoring,
    check_same_classes,
    check_same_run,
    common_fingerprints,
)
from drkd_jax.training.describe import data_findings
from drkd_jax.training.setup import open_sources
from tests.data.conftest import CocoFolder

PIPELINE = PipelineConfig(
    batch_size=1, canvases=((64, 64),), shorter=64, longer=64, max_boxes=5, num_threads=0
)


@pytest.fixture
def folder(tmp_path) -> CocoFolder:
    return CocoFolder(tmp_path / "set")


def test_changed_classes_are_refused_with_both_lists(tmp_path):
    old = [[1, "nut"], [2, "bolt"]]
    check_same_classes(old, [[1, "nut"], [2, "bolt"]], tmp_path)
    check_same_classes(old, [["1", "nut"], ["2", "bolt"]], tmp_path)  # the same ids
    for new in ([[1, "bolt"], [2, "nut"]], [[0, "nut"], [1, "bolt"]], old[:1], [[1, "nut"]] * 2):
        with pytest.raises(UserError) as raised:
            check_same_classes(old, new, tmp_path)
        assert "(1 nut, 2 bolt)" in str(raised.value)
        assert "(" + ", ".join(f"{i} {name}" for i, name in new) + ")" in str(raised.value)


@pytest.mark.parametrize("differing", [[], ["train"], ["val"], ["teacher"]])
def test_a_host_with_another_copy_of_the_data_is_named(differing, folder, monkeypatch):
    """This is process 0 of three; the third one reports what it found in each set."""
    sources = dict.fromkeys(("train", "val"), open_source(folder.spec))
    third = iter([part in differing for part in (*sources, "teacher")])
    monkeypatch.setattr(same_run, "from_all", lambda own: np.concatenate([own, own, [next(third)]]))
    if not differing:
        assert common_fingerprints(sources, {})["val"] == fingerprint(sources["val"])
        return
    with pytest.raises(UserError, match=rf"config\..*{differing[0]}.*: process 2 reads other"):
        common_fingerprints(sources, {})


def now(folder: CocoFolder) -> dict:
    folder.write()
    return json.loads(json.dumps(fingerprint(open_source(folder.spec))))  # as a checkpoint has it


def replace(folder: CocoFolder) -> None:
    cv2.imwrite(str(folder.images / "a.jpg"), np.zeros((60, 80, 3), np.uint8))


CHANGES = {
    "an image more": (
        lambda f: f.content["images"].append(f.content["images"][0] | {"id": 70}),
        "other images (4 then, 5 now)",
    ),
    "another image": (replace, "other images (4 then, 4 now)"),
    "an image renamed": (
        lambda f: f.content["images"][0].update(id=70),
        "other images (4 then, 4 now)",
    ),
    "a box more": (
        lambda f: f.content["annotations"].append(f.content["annotations"][0] | {"id": 999}),
        "other annotations (6 then, 7 now)",
    ),
    "a box moved": (
        lambda f: f.content["annotations"][0].update(bbox=[1, 2, 3, 4]),
        "other annotations (6 then, 6 now)",
    ),
    "a box of another class": (
        lambda f: f.content["annotations"][0].update(category_id=17),
        "other annotations (6 then, 6 now)",
    ),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_changed_images_and_boxes_are_said(folder, kind):
    change, told = CHANGES[kind]
    before = {"train": now(folder), "val": now(folder)}
    assert changed_data(before, {"train": now(folder), "val": now(folder)}) == []
    if kind == "an image renamed":
        folder.content["annotations"] = [
            row | {"image_id": 70} if row["image_id"] == 7 else row
            for row in folder.content["annotations"]
        ]
    change(folder)
    line, of_val = changed_data(before, {"train": now(folder), "val": now(folder)})
    assert line.startswith("config.data.train is not what it was at the last checkpoint")
    assert told in line
    assert "the best checkpoint so far was chosen on what it was" in of_val


def test_a_checkpoint_of_before_has_no_fingerprint(folder):
    assert changed_data({}, {"train": now(folder), "val": now(folder)}) == []


def of_teacher(scale: float) -> dict:
    """A teacher's arrays: a backbone, and a head, which is kept only if it is needed."""
    kernel = np.arange(6, dtype=np.float32).reshape(2, 3)
    return {"backbone": {"kernel": scale * kernel}, "head": {"bias": np.full(2, scale)}}


def test_another_teacher_is_said(folder):
    sources = dict.fromkeys(("train", "val"), open_source(folder.spec))
    before = json.loads(json.dumps(common_fingerprints(sources, of_teacher(1.0))))
    without_head = common_fingerprints(sources, {"backbone": of_teacher(1.0)["backbone"]})
    assert changed_data(before, without_head) == []
    (line,) = changed_data(before, common_fingerprints(sources, of_teacher(1.001)))
    assert line.startswith("config.teacher.checkpoint has other weights than at the last checkp")
    of_before = common_fingerprints(sources)  # and one that is drawn at random
    assert changed_data(of_before, before) == changed_data(before, of_before) == []


def test_other_scores_than_the_best_was_chosen_by_are_said():
    some, all_of_them = {"eval": {"batch_size": 4, "max_images": 100}}, {"eval": {}}
    assert changed_scoring(some, {"eval": {**some["eval"], "batch_size": 8}}) == []
    assert changed_scoring(all_of_them, {"eval": {"max_images": 0, "max_detections": 100}}) == []
    (line,) = changed_scoring(some, all_of_them)
    assert line.startswith("config.eval.max_images is 0, and was 100 at the last checkpoint")


def test_a_set_that_moved_is_the_same(folder, tmp_path):
    before = now(folder)
    (tmp_path / "set").rename(tmp_path / "moved")
    moved = open_source(f"coco:{tmp_path / 'moved/images'}:{tmp_path / 'moved/instances.json'}")
    assert fingerprint(moved) == before


def test_new_keys_of_the_data_do_not_make_it_another_run(tmp_path):
    old, new = {"data": {"train": "x"}}, {"data": {"train": "x", "exif": "auto", "depth": 0}}
    check_same_run(old, new, tmp_path)
    new["data"]["exif"] = "turned"
    with pytest.raises(UserError, match=r"data\.exif \(None there, turned here\)"):
        check_same_run(old, new, tmp_path)


def opened(train: CocoFolder, val: CocoFolder):
    train.write()
    val.write()
    return open_sources({"data": {"train": train.spec, "val": val.spec}}, PIPELINE)


def test_val_is_brought_to_train_by_name(tmp_path):
    train, val = CocoFolder(tmp_path / "train"), CocoFolder(tmp_path / "val")
    for row in val.content["categories"] + val.content["annotations"]:
        key = "category_id" if "bbox" in row else "id"
        row[key] = {1: 50, 17: 4, 90: 5}[row[key]]
    trained, valued, notes = opened(train, val)
    assert [c.name for c in trained.categories] == [c.name for c in valued.categories]
    assert [c.id for c in valued.categories] == [50, 4, 5]
    np.testing.assert_array_equal(valued.record(0).labels, trained.record(0).labels)
    assert len(notes) == 1


def test_val_of_unusable_boxes_is_refused(tmp_path):
    train, val = CocoFolder(tmp_path / "train"), CocoFolder(tmp_path / "val")
    for row in val.content["annotations"]:
        row["bbox"], row["area"] = [0.1, 0.2, 0.3, 0.4], 0.12
    with pytest.raises(UserError, match=r"val.*no box to train on .*normalised\?"):
        opened(train, val)
    val.content["annotations"] = []  # nothing to score is told, and no reason to stop
    opened(train, val)


def test_the_start_says_what_the_check_says(tmp_path):
    train, val = CocoFolder(tmp_path / "train"), CocoFolder(tmp_path / "val")
    boxes = [[i, 5, 9, 9] for i in range(12)]
    for folder in (train, val):
        folder.content["annotations"] += [
            {"id": 1000 + i, "image_id": 7, "category_id": 17, "bbox": box}
            for i, box in enumerate(boxes)
        ]
        folder.content["annotations"][0]["iscrowd"] = None
        folder.content["images"].append(folder.content["images"][0] | {"id": 70})
    trained, valued, _ = opened(train, val)
    found = data_findings(trained, valued, max_boxes=5, max_detections=10)
    texts = {part: [text for p, text, _ in found if p == part] for part in ("train", "val")}
    past = "1 image has more than data.max_boxes = 5 boxes: training leaves 9 boxes per"
    assert any(text.startswith(past) for text in texts["train"])
    past = "1 image has more than 10 boxes of a class (at most 12), and of each class only the"
    assert any(text.startswith(past) for text in texts["val"])
    for part, folder in (("train", train), ("val", val)):
        assert "1 file is listed as several images: a.jpg" in texts[part]
        assert "1 annotation has 'iscrowd' null; 0 is used" in texts[part]
        said = check(folder.spec).warnings
        assert [text for text in texts[part] if "more than" not in text and text not in said] == []


def test_more_boxes_than_a_detector_gives(folder):
    """Twelve boxes, at most ten of one class."""
    folder.content["annotations"] = [
        {"id": i, "image_id": 7, "category_id": (1, 17, 90)[i % 3], "bbox": [i, 5, 9, 9]}
        for i in range(12)
    ]
    folder.write()
    source = open_source(folder.spec)
    found = [text for part, text, _ in data_findings(source, source, 100, 10) if part == "val"]
    told = "1 image has more than 10 boxes of all classes (at most 12), and a detector gives 10"
    assert any(text.startswith(told) for text in found)
    assert not any("boxes of" in text for _, text, _ in data_findings(source, source, 100, 12))


def test_images_of_both_sets_are_said(tmp_path):
    train, val = CocoFolder(tmp_path / "train"), CocoFolder(tmp_path / "val")
    val.images = train.images
    val.content["images"] = val.content["images"][:2]
    val.content["annotations"] = val.content["annotations"][:2]
    trained, valued, _ = opened(train, val)
    (told,) = (text for _, text, _ in data_findings(trained, valued, 100) if "as well" in text)
    assert told.startswith("2 of its 2 images are in config.data.train as well: ")


@pytest.mark.parametrize("way", ["link", "relative", "dots"])
def test_images_of_both_sets_are_found_however_their_folder_is_reached(folder, monkeypatch, way):
    root = folder.images.parent
    monkeypatch.chdir(root)
    (root / "link").symlink_to(folder.images)
    name = {"link": root / "link", "relative": "images", "dots": root / "images" / ".." / "images"}
    trained = open_source(folder.spec)
    folder.content["images"] = folder.content["images"][:2]
    folder.content["annotations"] = folder.content["annotations"][:2]
    folder.write()
    valued = open_source(f"coco:{name[way]}:{folder.json}")
    (told,) = (text for _, text, _ in data_findings(trained, valued, 100) if "as well" in text)
    assert told.startswith("2 of its 2 images are in config.data.train as well: ")
    joined = open_source(f"{folder.spec} + {valued.spec}")
    assert any("2 files are listed as several images" in finding.text for finding in find(joined))
