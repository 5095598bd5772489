"""Matching classes by name: between two sets, and in joined sets."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from drkd_jax.data.checking.findings import find
from drkd_jax.data.sources import open_source
from drkd_jax.data.sources.classes import with_classes
from drkd_jax.data.sources.records import Category, id_key
from drkd_jax.errors import UserError
from drkd_jax.evaluation import coco_numbers

NUT, BOLT, CAP = [5, 5, 10, 10], [20, 5, 12, 8], [5, 20, 6, 9]  # a class by its box


def make(root: Path, classes: dict[Any, str], count: int = 2, first: Any = 1) -> str:
    """Images with a nut, a bolt and a cap each, as far as these classes exist."""
    (root / "images").mkdir(parents=True)
    box_of = {"nut": NUT, "bolt": BOLT, "cap": CAP}
    images, annotations = [], []
    for i in range(count):
        name = f"{i}.png"
        cv2.imwrite(str(root / "images" / name), np.full((40, 50, 3), i, np.uint8))
        images.append({"id": first + i, "file_name": name, "height": 40, "width": 50})
        for number, label in classes.items():
            if label.strip() in box_of:
                box = box_of[label.strip()]
                row = {"image_id": first + i, "category_id": number, "bbox": box}
                annotations.append({"id": len(annotations) + 1, **row})
    categories = [{"id": number, "name": name} for number, name in classes.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "instances.json").write_text(json.dumps(content))
    return f"coco:{root / 'images'}:{root / 'instances.json'}"


TRAIN = (Category(1, "nut"), Category(2, "bolt"), Category(3, "cap"))


def matched(spec: str):
    return with_classes(open_source(spec), TRAIN, "val", "train")


def names_of_boxes(source, index: int = 0) -> dict[str, list[float]]:
    record = source.record(index)
    names = [source.categories[label].name for label in record.labels]
    sizes = record.boxes.copy()
    sizes[:, 2:] -= sizes[:, :2]
    return dict(zip(names, sizes.tolist(), strict=True))


@pytest.mark.parametrize(
    "classes",
    [
        {1: "bolt", 2: "nut", 3: "cap"},
        {7: "nut", 9: "bolt", 20: "cap"},
        {0: "cap", 1: "nut", 2: "bolt"},
        {"c": "nut", "b": "bolt", "a": "cap"},
    ],
)
def test_other_ids_and_orders_are_mapped_by_name(tmp_path, classes):
    source, notes = matched(make(tmp_path, classes))
    assert [category.name for category in source.categories] == ["nut", "bolt", "cap"]
    assert names_of_boxes(source) == {"nut": NUT, "bolt": BOLT, "cap": CAP}
    id_of = {name: number for number, name in classes.items()}
    assert [category.id for category in source.categories] == [id_of[c.name] for c in TRAIN]
    truth = source.coco_ground_truth()  # in the file's own ids
    assert {a["category_id"]: a["bbox"] for a in truth["annotations"]} == {
        id_of["nut"]: NUT,
        id_of["bolt"]: BOLT,
        id_of["cap"]: CAP,
    }
    (note,) = notes
    assert "by name" in note
    assert "(1 nut, 2 bolt, 3 cap)" in note
    found = source.table.labels.tolist()
    assert found == pickle.loads(pickle.dumps(source)).table.labels.tolist()  # for worker processes


def test_the_same_classes_are_left_as_they_are(tmp_path):
    source = open_source(make(tmp_path, {1: "nut", 2: "bolt", 3: "cap"}))
    assert with_classes(source, TRAIN, "val", "train") == (source, [])


@pytest.mark.parametrize("classes", [{1: "nut", 2: "cap"}, {2: "cap", 5: "nut"}])
def test_a_set_without_one_of_the_classes(tmp_path, classes):
    source, notes = matched(make(tmp_path, classes))
    assert [category.name for category in source.categories] == ["nut", "bolt", "cap"]
    assert names_of_boxes(source) == {"nut": NUT, "cap": CAP}
    ids = [category.id for category in source.categories]
    assert len(set(ids)) == 3
    truth = source.coco_ground_truth()
    assert sorted(c["id"] for c in truth["categories"]) == sorted(ids)
    assert "val has no class (2 bolt): it is not scored there" in notes


def perfect(source) -> float:
    truth = source.coco_ground_truth()
    rows = ({**row, "score": 0.9} for row in truth["annotations"])
    return coco_numbers(truth, list(rows))["AP"]


def test_a_lacking_class_whose_id_is_taken_as_a_text(tmp_path):
    """ "1" and 1 are the same id, so an evaluator would treat them as one class."""
    source, _ = matched(make(tmp_path, {"1": "cap", "2": "bolt"}))
    assert len({id_key(category.id) for category in source.categories}) == 3
    assert perfect(source) == pytest.approx(1)


@pytest.mark.parametrize("numbers", [("1", 1), ("0001", 1), (" 1", "1")])
def test_joined_sets_with_one_id_written_in_two_ways(tmp_path, numbers):
    specs = []
    for number, label in zip(numbers, ("nut", "bolt"), strict=True):
        root = tmp_path / label
        specs.append(make(root, {number: label}, count=1))
        path = root / "instances.json"
        content = json.loads(path.read_text())
        content["images"][0]["id"] = content["annotations"][0]["image_id"] = number
        path.write_text(json.dumps(content))
    source = open_source(" + ".join(specs))
    assert [source.meta(i).image_id for i in range(2)] == [1, 2]
    assert {c.name: c.id for c in source.categories} == {"nut": numbers[0], "bolt": 2}
    assert perfect(source) == pytest.approx(1)


def test_names_that_only_look_the_same_are_the_same(tmp_path):
    source, notes = matched(make(tmp_path, {1: "nut ", 2: "\tbolt", 3: "cap"}))
    assert source.categories == TRAIN
    assert notes == []
    (told,) = (finding.text for finding in find(source) if "class names" in finding.text)
    assert told.startswith("2 class names are read without blanks")
    decomposed = open_source(make(tmp_path / "a", {1: "ka\u0308se"}))
    assert decomposed.categories == (Category(1, "k\u00e4se"),)


def test_what_cannot_be_mapped_shows_ids_beside_names(tmp_path):
    source = open_source(make(tmp_path, {4: "nut", 8: "cap", 9: "parts"}))  # no box of parts
    with pytest.raises(UserError) as raised:
        with_classes(source, TRAIN[:2], "val", "train")
    told = str(raised.value)
    assert "val has boxes of (8 cap), which train does not have" in told
    assert "val has (4 nut, 8 cap, 9 parts); train has (1 nut, 2 bolt)" in told


def test_a_strange_class_without_a_box_is_left_out(tmp_path):
    source, notes = matched(make(tmp_path, {0: "parts", 1: "nut", 2: "bolt", 3: "cap"}))
    assert names_of_boxes(source) == {"nut": NUT, "bolt": BOLT, "cap": CAP}
    assert notes[0] == "val: (0 parts) without a box, left out"


def test_names_that_occur_twice_are_refused(tmp_path):
    with pytest.raises(UserError, match="'nut' occurs twice"):
        matched(make(tmp_path, {1: "nut", 2: "nut"}))


def test_joined_sets(tmp_path):
    specs = [
        make(tmp_path / "a", {1: "nut", 2: "bolt"}),
        make(tmp_path / "b", {1: "cap", 2: "nut"}, count=3),
    ]
    source = open_source(" + ".join(specs))
    assert len(source) == 5
    assert [tuple(c) for c in source.categories] == [(1, "nut"), (2, "bolt"), (3, "cap")]
    assert names_of_boxes(source, 1) == {"nut": NUT, "bolt": BOLT}
    assert names_of_boxes(source, 4) == {"nut": NUT, "cap": CAP}
    assert [source.meta(i).image_id for i in range(5)] == [1, 2, 3, 4, 5]
    assert [source.record(i).image_id for i in range(5)] == [1, 2, 3, 4, 5]
    truth = source.coco_ground_truth()
    assert [image["id"] for image in truth["images"]] == [1, 2, 3, 4, 5]
    assert [a["id"] for a in truth["annotations"]] == list(range(1, 11))
    assert {a["category_id"] for a in truth["annotations"] if a["bbox"] == CAP} == {3}
    assert truth["annotations"] == [
        {**row, "id": i + 1} for i, row in enumerate(source.table.ground_truth()["annotations"])
    ]
    assert source.describe() == {
        "images": 5,
        "boxes": 10,
        "classes": 3,
        "crowd": 0,
        "dropped": 0,
    }
    texts = [finding.text for finding in find(source)]
    assert any("classes are joined by name: 'cap' is 3 for 1, 'nut' is 1 for 2" in t for t in texts)
    assert any("share ids and are numbered from 1 to 5" in text for text in texts)
    assert not any("listed as several" in text for text in texts)  # 0.png of two folders


def test_joined_sets_keep_ids_that_do_not_clash(tmp_path):
    specs = [make(tmp_path / "a", {1: "nut"}), make(tmp_path / "b", {1: "nut"}, first=100)]
    source = open_source(f"{specs[0]}+{specs[1]}")
    assert [source.meta(i).image_id for i in range(4)] == [1, 2, 100, 101]
    assert source.mended == []


def test_the_same_set_twice_is_the_same_files(tmp_path):
    spec = make(tmp_path, {1: "nut"})
    texts = [finding.text for finding in find(open_source(f"{spec} + {spec}"))]
    assert "2 files are listed as several images: 0.png, 1.png" in texts


def test_drawn_images_can_be_joined_with_files(tmp_path):
    source = open_source(f"{make(tmp_path, {1: 'nut'})} + shapes:2")
    assert len(source) == 4
    assert source.scan.content[-1] == -1
    assert source.record(3).image.ndim == 3
    assert all(finding.text for finding in find(source))


@pytest.mark.parametrize("spec", ["shapes:2 + ", "shapes:2 + voc:x", "+ shapes:2"])
def test_broken_joints(spec):
    with pytest.raises(UserError, match="shapes"):
        open_source(spec)
