"""Unusual annotation files, one row per kind: accepted, skipped with a message, or refused.

docs/data.md describes the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from drkd_jax.cli import prepare
from drkd_jax.data.checking.check import check
from drkd_jax.data.pipeline import PipelineConfig, train_loader
from drkd_jax.data.sources import open_source
from drkd_jax.errors import UserError
from tests.data.conftest import CocoFolder
from tests.data.test_bad_images import CONFIG, HEIGHT, WIDTH


class Nothing:
    """Stands for a missing key."""


NOTHING = Nothing()


def put(*path: Any) -> Callable[[CocoFolder], None]:
    """Sets the entry at ``path[:-1]`` to ``path[-1]``."""

    def change(folder: CocoFolder) -> None:
        content: Any = folder.content
        for key in path[:-2]:
            content = content[key]
        if path[-1] is NOTHING:
            del content[path[-2]]
        else:
            content[path[-2]] = path[-1]
        folder.write()

    return change


def write(data: bytes) -> Callable[[CocoFolder], Any]:
    return lambda folder: folder.json.write_bytes(data)


def image(key: str, value: Any) -> Callable[[CocoFolder], None]:
    return put("images", 0, key, value)


def category(key: str, value: Any) -> Callable[[CocoFolder], None]:
    return put("categories", 0, key, value)


def box(key: str, value: Any) -> Callable[[CocoFolder], None]:
    return put("annotations", 0, key, value)


NAN, INFINITE = float("nan"), float("inf")
NO_NUMBERS = "is not four finite numbers (x, y, width, height)"

FILE_FAULTS: dict[str, tuple[Callable[[CocoFolder], Any], str]] = {
    "json missing": (lambda f: f.json.unlink(), "cannot be read: No such file"),
    "json is a folder": (lambda f: (f.json.unlink(), f.json.mkdir()), "Is a directory"),
    "json empty": (write(b""), "the file is empty (0 bytes)"),
    "json broken": (write(b'{"images": ['), "are not valid json"),
    "json not utf-8": (write('{"name": "caf\xe9"}'.encode("latin-1")), "not utf-8 text"),
    "json is a gzip file": (write(b"\x1f\x8b\x08\0" + bytes(20)), "the file is a gzip file"),
    "json nested too deep": (write(b"[" * 10**5), "are not valid json"),
    "a list at the top": (write(b"[]"), "hold a list, not a json object"),
    "a number at the top": (write(b"7"), "hold a int, not a json object"),
    "a file of results": (write(b'[{"bbox": [1, 2, 3, 4]}]'), "looks like a list of results"),
    "no images": (put("images", NOTHING), "no list 'images'"),
    "no annotations": (put("annotations", NOTHING), "no list 'annotations'"),
    "no categories": (put("categories", NOTHING), "no list 'categories'"),
    "images no list": (put("images", {}), "no list 'images'"),
    "images empty": (put("images", []), "its list 'images' is empty"),
    "categories empty": (put("categories", []), "its list 'categories' is empty"),
}
ENTRY_FAULTS: dict[str, tuple[Callable[[CocoFolder], Any], str]] = {
    "image no object": (put("images", 0, 5), "image number 0: a int, not a json object"),
    "image without id": (image("id", NOTHING), "image number 0: no key 'id'"),
    "image without file name": (image("file_name", NOTHING), "image id 7: no key 'file_name'"),
    "image without height": (image("height", NOTHING), "image id 7: no key 'height'"),
    "image id empty": (image("id", ""), "image id : id '' is not a whole number"),
    "image id twice, as text": (image("id", "3"), "image id 3: occurs twice"),
    "image id twice": (image("id", 3), "image id 3: occurs twice"),
    "height 0": (image("height", 0), "image id 7: its size 80x0 is not positive"),
    "height negative": (image("height", -60), "its size 80x-60 is not positive"),
    "height text": (image("height", "60"), "image id 7: height '60' is not a whole number"),
    "height fractional": (image("height", 60.5), "height 60.5 is not a whole number"),
    "width null": (image("width", None), "width None is not a whole number"),
    "width of no image": (image("width", 2**63), "its size 9223372036854775808x60 is not an image"),
    "file name of half a letter": (image("file_name", "a\ud83d.jpg"), "is not the name of a file"),
    "category name of half a letter": (category("name", "\ud83d"), "name '\\ud83d' is not a text"),
    "file name empty": (image("file_name", " "), "file_name ' ' is not the name of a file"),
    "file name no text": (image("file_name", 5), "file_name 5 is not the name of a file"),
    "file name with a zero": (image("file_name", "a\0.jpg"), "is not the name of a file"),
    "file name leading out": (image("file_name", "../a.jpg"), "'../a.jpg' leads out of the ima"),
    "file name leading out later": (image("file_name", "x/../../a.jpg"), "leads out of the ima"),
    "file name absolute": (image("file_name", "/etc/passwd"), "leads out of the image folder"),
    "category no object": (put("categories", 0, []), "category number 0: a list, not a json"),
    "category id a list": (category("id", [90]), "id [90] is not a whole number"),
    "category id fractional": (category("id", 1.5), "id 1.5 is not a whole number"),
    "category id true": (category("id", True), "id True is not a whole number"),
    "category id enormous": (category("id", 2**70), "is not a whole number"),
    "category id twice": (category("id", 1), "category id 1: occurs twice"),
    "category without name": (category("name", NOTHING), "category id 90: no key 'name'"),
    "category name no text": (category("name", 5), "category id 90: name 5 is not a text"),
    "annotation no object": (put("annotations", 0, "x"), "annotation number 0: a str, not a"),
    "annotation without id": (box("id", NOTHING), "annotation number 0: no key 'id'"),
    "annotation without image": (box("image_id", NOTHING), "annotation id 101: no key 'image_id'"),
    "annotation without class": (box("category_id", NOTHING), "no key 'category_id'"),
    "annotation without box": (box("bbox", NOTHING), "annotation id 101: no key 'bbox'"),
    "annotation id twice": (box("id", 102), "annotation id 102: occurs twice"),
    "annotation id null": (box("id", None), "id None is not a whole number"),
    "image id unknown": (box("image_id", 99), "annotation id 101: unknown image_id 99"),
    "category id unknown": (
        box("category_id", 2),
        "annotation id 101: unknown category_id 2 ('categories' has 1, 17, 90)",
    ),
    "box with nan": (box("bbox", [1, 2, NAN, 4]), f"id 101: bbox [1, 2, nan, 4] {NO_NUMBERS}"),
    "box infinite": (box("bbox", [1, 2, INFINITE, 4]), NO_NUMBERS),
    "box beyond float": (box("bbox", [1, 2, 10**400, 4]), NO_NUMBERS),
    "box whose area is beyond float": (box("bbox", [1, 2, 1e200, 1e200]), NO_NUMBERS),
    "box of 3 numbers": (box("bbox", [1, 2, 3]), f"annotation id 101: bbox [1, 2, 3] {NO_NUMBERS}"),
    "box of 5 numbers": (box("bbox", [1, 2, 3, 4, 5]), NO_NUMBERS),
    "box of texts": (box("bbox", ["1", "2", "3", "4"]), f"bbox ['1', '2', '3', '4'] {NO_NUMBERS}"),
    "box a text of 4 digits": (box("bbox", "1234"), NO_NUMBERS),
    "box null": (box("bbox", None), f"bbox None {NO_NUMBERS}"),
    "box an object": (box("bbox", {"x": 1}), NO_NUMBERS),
    "area nan": (box("area", NAN), "annotation id 101: area nan is not a finite number"),
    "area text": (box("area", "600"), "area '600' is not a finite number"),
    "iscrowd 2": (box("iscrowd", 2), "annotation id 101: iscrowd 2 is neither 0 nor 1"),
    "iscrowd text": (box("iscrowd", "0"), "iscrowd '0' is neither 0 nor 1"),
}


@pytest.mark.parametrize("kind", FILE_FAULTS | ENTRY_FAULTS)
def test_files_that_are_refused(coco_folder, kind, capsys):
    spoil, told = (FILE_FAULTS | ENTRY_FAULTS)[kind]
    spoil(coco_folder)
    with pytest.raises(UserError) as raised:
        open_source(coco_folder.spec)
    assert told in str(raised.value)
    assert str(coco_folder.json) in str(raised.value)
    if kind in FILE_FAULTS:
        with pytest.raises(UserError, match="json"):
            check(coco_folder.spec)
    else:  # the check continues to the end, and names all faults
        assert any(told in error for error in check(coco_folder.spec).errors)
        assert prepare.main([coco_folder.spec, "--check"]) == 2
        assert told in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("coco:{root}/nowhere:{json}", "nowhere does not exist"),
        ("coco:{json}:{json}", "instances.json is a file; the form is coco:IMAGES_DIR"),
        ("coco:{json}:{images}", "instances.json is a file; the form is coco:IMAGES_DIR"),
        ("coco:{images}", "expected coco:IMAGES_DIR:INSTANCES_JSON"),
        ("voc:{images}", "unknown data source"),
        ("shapes:none", "in whole numbers"),
    ],
)
def test_names_that_lead_nowhere(coco_folder, spec, told):
    paths = {"root": coco_folder.images.parent, "images": coco_folder.images}
    with pytest.raises(UserError, match=told.replace(".", r"\.")):
        open_source(spec.format(**paths, json=coco_folder.json))


def boxes_of(folder: CocoFolder, *boxes: list[float], **more: Any) -> None:
    """Gives a.jpg only these boxes."""
    folder.content["annotations"] = [
        {"id": i, "image_id": 7, "category_id": 1, "bbox": box, "area": box[2] * box[3], **more}
        for i, box in enumerate(boxes)
    ]
    folder.write()


@pytest.mark.parametrize(
    ("bad", "more", "told"),
    [
        ([30, 30, -10, 10], {"area": 100}, "negative width or height"),
        ([30, 30, 10, -10], {"area": 100}, "negative width or height"),
        ([40, 40, 20, 20], {"area": -1}, "stated area not positive"),
        ([10, 10, 0, 10], {"area": 5}, "no area"),
        ([80, 0, 10, 10], {}, "outside the image"),
        ([-50, -50, 20, 20], {}, "outside the image"),
        ([1e12, 1e12, 20, 20], {}, "outside the image"),
        ([10, 10, 0.5, 10], {"area": 5}, "narrower or lower than a pixel"),
        ([10, 10, 10, 10], {"area": 0}, "stated area not positive"),
    ],
)
def test_boxes_that_are_left_out_of_training_and_reported(coco_folder, bad, more, told):
    boxes_of(coco_folder, [10, 10, 20, 20], bad)
    coco_folder.content["annotations"][1] |= more
    coco_folder.write()
    source = open_source(coco_folder.spec)
    np.testing.assert_array_equal(source.record(0).boxes, [[10, 10, 30, 30]])
    assert source.describe()["dropped"] == 1
    report = check(coco_folder.spec)
    assert report.left_out == {told: 1}
    assert not report.errors
    assert f"1 annotation is left out of training, {told}: 1" in report.warnings
    # The evaluation is pycocotools', which counts all of them.
    assert len(source.coco_ground_truth()["annotations"]) == 2


def test_boxes_that_reach_out_are_cut_and_reported(coco_folder):
    boxes_of(coco_folder, [-5, -5, 20, 20], [70, 50, 1e9, 1e9])
    source = open_source(coco_folder.spec)
    np.testing.assert_array_equal(source.record(0).boxes, [[0, 0, 15, 15], [70, 50, 80, 60]])
    told = "2 annotations are cut at the image's edge: 0, 1"
    assert told in check(coco_folder.spec).warnings


def test_ten_thousand_boxes_in_one_image(coco_folder):
    boxes_of(coco_folder, *([i % 70, i % 50, 5 + i % 3, 5] for i in range(10_000)))
    source = open_source(coco_folder.spec)
    loader = train_loader(source, PipelineConfig(**{**vars(CONFIG), "drop_empty": True}))
    batch = next(loader)
    assert batch.valid.shape == (1, 100)
    assert batch.valid.all()
    assert loader.counts()["boxes_past_max"] == 9_900
    report = check(coco_folder.spec)
    assert report.most_boxes == 10_000
    assert (
        "1 image has more than data.max_boxes = 100 boxes: training leaves 9900 boxes per "
        "epoch out: a.jpg" in report.warnings
    )


@pytest.mark.parametrize("crowd", [0, 1])
def test_nothing_to_train_on(coco_folder, crowd):
    boxes_of(coco_folder, *[[10, 10, 20, 20]] * crowd, iscrowd=1)
    source = open_source(coco_folder.spec)
    assert not source.table.num_boxes.any()
    for drop_empty in (False, True):
        config = PipelineConfig(**{**vars(CONFIG), "drop_empty": drop_empty})
        with pytest.raises(UserError, match=r"no box to train on.*(no annotation|1 crowd region)"):
            train_loader(source, config)
    told = "4 images have no box to train on: a.jpg, b.jpg, c.jpg, d.jpg"
    assert told in check(coco_folder.spec).warnings


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_other_encodings_of_json_work(coco_folder, encoding):
    coco_folder.json.write_bytes(json.dumps(coco_folder.content).encode(encoding))
    assert len(open_source(coco_folder.spec)) == 4


@pytest.mark.parametrize("name", ["sub/dir/a.jpg", "ein Bild äöü 図.jpg", "a:b.jpg", "-a.jpg"])
def test_unusual_file_names_work(coco_folder, name):
    path = coco_folder.images / name
    path.parent.mkdir(parents=True, exist_ok=True)
    (coco_folder.images / "a.jpg").rename(path)
    image("file_name", name)(coco_folder)
    assert open_source(coco_folder.spec).record(0).image.shape == (HEIGHT, WIDTH, 3)
    assert not check(coco_folder.spec).errors


def test_whole_numbers_may_be_written_with_a_point(coco_folder):
    for entry in coco_folder.content["images"]:
        entry |= {key: float(entry[key]) for key in ("id", "height", "width")}
    coco_folder.write()
    assert open_source(coco_folder.spec).meta(0) == (7, 60, 80, 2)


def test_what_is_odd_is_told(coco_folder):
    content = coco_folder.content
    content["images"].append(content["images"][0] | {"id": 70})
    (coco_folder.images / "b.jpg").write_bytes((coco_folder.images / "a.jpg").read_bytes())
    content["images"][1] |= {"height": 60, "width": 80}
    content["categories"].append({"id": 5, "name": "cat"})
    coco_folder.write()
    (coco_folder.images / "stray.txt").write_text("x")
    report = check(coco_folder.spec)
    for told in (
        "1 class has no box: cat",
        "1 class name occurs more than once: cat",
        "1 file is listed as several images: a.jpg",
        "1 group of images with the same pixels: a.jpg=b.jpg=a.jpg",
        f"{coco_folder.images}: 1 file is not in the instances file: stray.txt",
    ):
        assert told in report.warnings
    assert not report.errors
