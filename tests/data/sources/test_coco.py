from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest

from drkd_jax.data.sources import open_source
from drkd_jax.data.sources.coco import CocoSource
from drkd_jax.errors import UserError


def test_records(coco_folder):
    source = open_source(coco_folder.spec)
    assert [(c.id, c.name) for c in source.categories] == [
        (1, "person"),
        (17, "cat"),
        (90, "toothbrush"),
    ]
    record = source.record(0)
    assert record.image_id == 7
    np.testing.assert_allclose(
        record.boxes, [[10.5, 12.25, 40.5, 32.25], [70, 50, 80, 60], [0, 0, 40, 30]]
    )
    assert record.labels.tolist() == [0, 2, 0]
    assert record.crowd.tolist() == [False, False, True]
    stored = cv2.imread(str(coco_folder.images / "a.jpg"))[:, :, ::-1]
    np.testing.assert_array_equal(record.image, stored)


def test_meta_counts_what_training_sees(coco_folder):
    source = open_source(coco_folder.spec)
    assert [source.meta(i).num_boxes for i in range(4)] == [2, 2, 0, 0]  # the last is crowd only
    assert source.describe() == {
        "images": 4,
        "boxes": 4,
        "classes": 3,
        "crowd": 2,
        "dropped": 0,
    }


def test_ground_truth_is_the_file(coco_folder):
    truth = open_source(coco_folder.spec).coco_ground_truth()
    assert truth["images"] == coco_folder.content["images"]

    def by_id(rows):
        return sorted(rows, key=lambda row: row["id"])

    assert by_id(truth["annotations"]) == by_id(coco_folder.content["annotations"])
    assert truth["categories"] == by_id(coco_folder.content["categories"])


@pytest.mark.parametrize(
    ("box", "area", "clipped"),
    [
        ([-5.0, -5.0, 20.0, 20.0], 400.0, [0, 0, 15, 15]),
        ([70.0, 50.0, 100.0, 100.0], 1e4, [70, 50, 80, 60]),
        ([80.0, 0.0, 10.0, 10.0], 100.0, None),  # outside
        ([10.0, 10.0, 0.0, 10.0], 5.0, None),
        ([10.0, 10.0, 0.9, 10.0], 9.0, None),
        ([10.0, 10.0, 10.0, 0.9], 9.0, None),
        ([10.0, 10.0, 1.0, 1.0], 1.0, [10, 10, 11, 11]),
        ([30.0, 30.0, -10.0, 10.0], 100.0, None),  # inverted
        ([10.0, 10.0, 5.0, 5.0], 0.0, None),  # its stated area
        ([10.0, 10.0, 5.0, 5.0], -3.0, None),
    ],
)
def test_degenerate_boxes_stay_out_of_training_but_not_of_evaluation(
    coco_folder, box, area, clipped
):
    annotation = coco_folder.content["annotations"][0] | {"bbox": box, "area": area}
    coco_folder.content["annotations"] = [annotation]
    coco_folder.write()
    source = open_source(coco_folder.spec)
    boxes = source.record(0).boxes
    np.testing.assert_allclose(boxes, np.array([clipped] if clipped else []).reshape(-1, 4))
    assert source.describe()["dropped"] == (clipped is None)
    assert source.coco_ground_truth()["annotations"] == [annotation]


def test_area_and_iscrowd_may_be_missing(coco_folder):
    for annotation in coco_folder.content["annotations"]:
        del annotation["area"], annotation["iscrowd"]
    coco_folder.write()
    annotation = open_source(coco_folder.spec).coco_ground_truth()["annotations"][0]
    assert annotation["area"] == 600
    assert annotation["iscrowd"] == 0


TEXTS = {
    "all": lambda content: [
        row.update({key: str(row[key]) for key in ("id", "image_id", "category_id") if key in row})
        for rows in ("images", "annotations", "categories")
        for row in content[rows]
    ],
    "annotations only": lambda content: [
        row.update(image_id=str(row["image_id"]), category_id=f" {row['category_id']}")
        for row in content["annotations"]
    ],
    "images only": lambda content: [row.update(id=str(row["id"])) for row in content["images"]],
    "no numbers": lambda content: [
        row.update({key: f"n{row[key]}" for key in ("id", "image_id", "category_id") if key in row})
        for rows in ("images", "annotations", "categories")
        for row in content[rows]
    ],
}


@pytest.mark.parametrize("kind", TEXTS)
def test_ids_may_be_texts_and_come_back_as_they_stand(coco_folder, kind):
    expected = open_source(coco_folder.spec)
    TEXTS[kind](coco_folder.content)
    coco_folder.write()
    source = open_source(coco_folder.spec)
    truth = source.coco_ground_truth()
    assert [row["id"] for row in truth["images"]] == [
        r["id"] for r in coco_folder.content["images"]
    ]
    known = {row["id"] for row in truth["categories"]}
    assert known == {row["id"] for row in coco_folder.content["categories"]}
    assert {row["category_id"] for row in truth["annotations"]} == known
    assert {row["image_id"] for row in truth["annotations"]} <= {r["id"] for r in truth["images"]}
    for index in range(len(expected)):
        ours, theirs = source.record(index), expected.record(index)
        assert ours.image_id == source.meta(index).image_id == truth["images"][index]["id"]
        np.testing.assert_array_equal(ours.boxes, theirs.boxes)
        assert [source.categories[i].name for i in ours.labels] == [
            expected.categories[i].name for i in theirs.labels
        ]
    assert "given as text" in source.mended[0]


def test_labels_go_by_the_numbers_of_the_classes_and_boxes_by_the_file(coco_folder):
    content = coco_folder.content
    content["categories"] = [{"id": k, "name": f"c{k}"} for k in ("b", 17, "10", 2, "a")]
    images = np.random.default_rng(0).choice([7, 3], 400).tolist()
    content["annotations"] = [
        {"id": k, "image_id": i, "category_id": 17, "bbox": [1, 1, 9, 9]}
        for k, i in enumerate(images)
    ]
    coco_folder.write()
    table = open_source(coco_folder.spec).table
    assert [c.id for c in table.categories] == [2, "10", 17, "a", "b"]
    first, second = ([k for k, i in enumerate(images) if i == own] for own in (7, 3))
    assert table.ids.tolist() == first + second


def test_ids_of_any_size_and_sign_are_kept(coco_folder):
    ids = {7: 2**53 + 1, 3: 2**63 + 5, 9: -4, 12: 2**53}
    for row in coco_folder.content["images"]:
        row["id"] = ids[row["id"]]
    for row in coco_folder.content["annotations"]:
        row["image_id"] = ids[row["image_id"]]
    coco_folder.write()
    source = open_source(coco_folder.spec)
    assert [source.record(i).image_id for i in range(4)] == list(ids.values())
    assert source.meta(0).num_boxes == 2
    coco_folder.content["images"][0]["id"] = float(2**60)
    coco_folder.write()
    with pytest.raises(UserError, match="not a whole number that a double can hold"):
        open_source(coco_folder.spec)


def test_area_and_iscrowd_may_be_null_and_it_is_said(coco_folder):
    for row in coco_folder.content["annotations"]:
        row |= {"area": None, "iscrowd": None}
    coco_folder.write()
    source = open_source(coco_folder.spec)
    assert source.coco_ground_truth()["annotations"][0]["area"] == 600
    assert source.describe()["crowd"] == 0
    assert source.mended == [
        "6 annotations have 'area' null; width x height is used",
        "6 annotations have 'iscrowd' null; 0 is used",
    ]


def test_ignore_is_not_looked_at_and_it_is_said(coco_folder):
    for row in coco_folder.content["annotations"]:
        row["ignore"] = 1
    crowds = sum(bool(row.get("iscrowd")) for row in coco_folder.content["annotations"])
    coco_folder.write()
    source = open_source(coco_folder.spec)
    assert source.describe()["crowd"] == crowds > 0
    (line,) = source.mended
    assert line.startswith(f"{6 - crowds} annotations have 'ignore'")


def test_an_outline_without_a_box_is_named(coco_folder):
    del coco_folder.content["annotations"][0]["bbox"]
    coco_folder.content["annotations"][0]["segmentation"] = [[1, 1, 5, 1, 5, 5]]
    coco_folder.write()
    told = r"id 101: no key 'bbox'; it has an outline \('segmentation'\): write the box"
    with pytest.raises(UserError, match=told):
        open_source(coco_folder.spec)


def _set(*path: Any, value: Any) -> Callable[[dict], None]:
    def change(content: dict) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change


def _delete(*path: Any) -> Callable[[dict], None]:
    def change(content: dict) -> None:
        for key in path[:-1]:
            content = content[key]
        del content[path[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_delete("images"), "no list 'images'"),
        (_delete("annotations"), "no list 'annotations'"),
        (_set("categories", value={}), "no list 'categories'"),
        (_delete("images", 1, "file_name"), "image id 3: no key 'file_name'"),
        (_delete("images", 1, "id"), "image number 1: no key 'id'"),
        (_set("images", 1, "height", value=0), "image id 3: its size 50x0"),
        (_set("images", 1, "width", value="x"), "image id 3: width 'x' is not a whole number"),
        (_set("images", 1, "id", value=7), "image id 7: occurs twice"),
        (_set("images", 1, "id", value=float(2**53)), "that a double can hold"),
        (_set("categories", 0, "id", value=1), "category id 1: occurs twice"),
        (_set("annotations", 0, "id", value=102), "annotation id 102: occurs twice"),
        (_set("annotations", 0, "image_id", value=99), "annotation id 101: unknown image_id 99"),
        (_set("annotations", 0, "category_id", value=2), "101: unknown category_id 2"),
        (_set("annotations", 0, "bbox", value=[1, 2, float("nan"), 4]), "annotation id 101: bbox"),
        (_set("annotations", 0, "bbox", value=[1, 2, 3]), "annotation id 101: bbox"),
        (_set("annotations", 0, "bbox", value=None), "annotation id 101"),
        (_set("annotations", 0, "area", value=float("inf")), "annotation id 101: area"),
        (_set("annotations", 0, value="no dict"), "annotation number 0"),
    ],
)
def test_faults_of_the_json_are_named(coco_folder, change, told):
    change(coco_folder.content)
    coco_folder.write()
    with pytest.raises(UserError) as raised:
        open_source(coco_folder.spec)
    assert told in str(raised.value)
    assert str(coco_folder.json) in str(raised.value)


@pytest.mark.parametrize(
    ("text", "told"), [("{", "not valid json"), ("[]", "a list"), ("\xff", "not valid json")]
)
def test_broken_json(coco_folder, text, told):
    coco_folder.json.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=told):
        open_source(coco_folder.spec)


def test_missing_folder_and_json(coco_folder, tmp_path):
    with pytest.raises(UserError, match=r"folder .*nowhere does not exist"):
        CocoSource(tmp_path / "nowhere", coco_folder.json)
    with pytest.raises(UserError, match=r"none\.json cannot be read: No such file"):
        CocoSource(coco_folder.images, tmp_path / "none.json")


def _spoil(path, how):
    if how == "missing":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("not an image")
    elif how == "other size":
        cv2.imwrite(str(path), np.zeros((10, 12, 3), np.uint8))


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("missing", "cannot be read: No such file"),
        ("empty", "is empty (0 bytes)"),
        ("text", "cannot be decoded"),
        ("other size", "the file is 12x10 pixels (width x height), its annotations say 80x60"),
    ],
)
def test_faults_of_an_image_are_named(coco_folder, how, told):
    _spoil(coco_folder.images / "a.jpg", how)
    source = open_source(coco_folder.spec)  # images are read on demand
    with pytest.raises(UserError) as raised:
        source.record(0)
    assert told in str(raised.value)
    assert "a.jpg" in str(raised.value)


def test_real_set(coco_sample):
    path = coco_sample / "instances_val.json"
    source = open_source(f"coco:{coco_sample / 'images'}:{path}")
    content = json.loads(path.read_text())
    assert len(source) == len(content["images"])
    assert len(source.categories) == 80
    assert source.describe()["crowd"] == sum(a["iscrowd"] for a in content["annotations"])
    index = next(i for i in range(len(source)) if source.meta(i).num_boxes)
    assert source.record(index).image.dtype == np.uint8
