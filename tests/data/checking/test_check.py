from __future__ import annotations

import contextlib
import json
import sys

import cv2
import numpy as np
import pytest

from drkd_jax import __main__ as command_line
from drkd_jax.cli import prepare
from drkd_jax.data.checking.check import check
from drkd_jax.data.checking.findings import find
from drkd_jax.data.sources import open_source
from drkd_jax.errors import UserError


def test_counts_by_class_and_size(coco_folder):
    coco_folder.content["annotations"][0]["area"] = 1024.0
    coco_folder.content["annotations"][3]["area"] = 9216.0
    coco_folder.write()
    report = check(coco_folder.spec)
    assert [tuple(row.values()) for row in report.classes] == [
        # id, name, images, boxes, small, medium, large, crowd
        (1, "person", 2, 2, 1, 1, 0, 2),
        (17, "cat", 1, 1, 0, 0, 1, 0),
        (90, "toothbrush", 1, 1, 1, 0, 0, 0),
    ]
    assert (report.images, report.readable, report.empty) == (4, 4, 2)
    assert (report.boxes, report.crowd, report.most_boxes) == (4, 2, 2)
    assert report.shorter == (40, 49, 60)
    assert report.longer == (40, 72, 90)
    assert report.errors == []


def test_samples_show_every_class_first(coco_folder):
    content = coco_folder.content
    for i in range(20, 40):  # many persons; the cat and the toothbrush are each in one image
        name = f"{i}.png"
        cv2.imwrite(str(coco_folder.images / name), np.full((30, 30, 3), i, np.uint8))
        content["images"].append({"id": i, "file_name": name, "height": 30, "width": 30})
        box = {"image_id": i, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81}
        content["annotations"].append(box | {"id": 1000 + i, "iscrowd": 0})
    coco_folder.write()
    samples = check(coco_folder.spec, num_samples=4).samples
    assert len(samples) == len(set(samples)) == 4
    assert set(samples) >= {0, 1}


def test_the_command_reports_and_draws(coco_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    out, file = tmp_path / "drawings", tmp_path / "report.json"
    arguments = ["prepare", coco_folder.spec, "--check", f"--out={out}", f"--json={file}"]
    assert command_line.main(arguments) == 0
    printed = capsys.readouterr()
    assert "4 of 4 images can be read, 2 without a box to train on" in printed.out
    assert "0 errors, 1 warning" in printed.out
    assert "4/4" in printed.err  # the progress bar, only on a terminal
    drawings = sorted(path.name for path in out.iterdir())
    assert len(drawings) == 4
    assert drawings[0] == "sample_01_a.png"
    drawn = cv2.imread(str(out / drawings[0]))
    assert min(drawn.shape[:2]) >= 480
    report = json.loads(file.read_text())
    assert report["boxes"] == 4
    assert report["classes"][0]["name"] == "person"


def test_what_is_found_is_said_before_anything_is_written(
    coco_folder, tmp_path, capsys, monkeypatch
):
    def full(*_, **__):
        raise UserError("the disk is full")

    monkeypatch.setattr(prepare, "write_json", full)
    with pytest.raises(UserError):
        prepare.main([coco_folder.spec, "--check", f"--json={tmp_path / 'report.json'}"])
    assert "0 errors, 1 warning" in capsys.readouterr().out


def test_a_long_name_makes_a_drawing(coco_folder, tmp_path):
    name = "\u00fc" * 125 + ".jpg"
    (coco_folder.images / "a.jpg").rename(coco_folder.images / name)
    coco_folder.content["images"][0]["file_name"] = name
    coco_folder.write()
    assert prepare.main([coco_folder.spec, "--check", f"--out={tmp_path / 'out'}"]) == 0
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_errors_are_listed_and_end_with_2(coco_folder, tmp_path, capsys):
    for name in ("a.jpg", "c.jpg"):
        (coco_folder.images / name).write_bytes(b"x")
    coco_folder.content["annotations"][3]["bbox"] = [1, 2, 3]
    coco_folder.write()
    file = tmp_path / "report.json"
    arguments = [coco_folder.spec, "--check", f"--json={file}", f"--out={tmp_path / 'out'}"]
    assert prepare.main(arguments) == 2
    out = capsys.readouterr().out
    assert out.count("error: ") == 3
    assert "error: annotation id 104: bbox [1, 2, 3] is not four finite" in out
    assert f"error: {coco_folder.images / 'c.jpg'}: cannot be decoded" in out
    assert len(json.loads(file.read_text())["errors"]) == 3
    assert len(list((tmp_path / "out").iterdir())) == 2  # only of readable images


def test_outlines_without_a_box_are_named_for_what_they_are(coco_folder, capsys):
    for row in coco_folder.content["annotations"]:
        del row["bbox"]
        row["segmentation"] = [[1, 1, 5, 1, 5, 5]]
    coco_folder.write()
    assert prepare.main([coco_folder.spec, "--check"]) == 2
    out = capsys.readouterr().out
    told = (
        "none of its 6 annotations can be used (6 times: no key 'bbox'; it has an outline "
        "('segmentation'): write the box around it as 'bbox')"
    )
    assert f"error: no box to train on: {told}" in out
    assert f"warning: {told}: nothing to learn from or to score" in out
    assert "no annotation" not in out


@pytest.mark.parametrize("content", [None, b"", b"version https://git-lfs.github.com/spec/v1\n"])
def test_files_that_are_no_images_are_said_at_the_start(coco_folder, content):
    path = coco_folder.images / "d.jpg"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    (told,) = (finding for finding in find(open_source(coco_folder.spec)) if finding.grave)
    assert told.text == "1 image file is missing, empty or not an image: d.jpg"
    report = check(coco_folder.spec)
    assert told.text in report.warnings
    assert len(report.errors) == 1


def test_an_avif_image_may_be_read(coco_folder):
    """It depends on the build of OpenCV."""
    path = coco_folder.images / "d.jpg"
    done, data = False, b""
    with contextlib.suppress(cv2.error):
        done, data = cv2.imencode(".avif", cv2.imread(str(path)))
    if not done:
        pytest.skip("this OpenCV writes no AVIF")
    path.write_bytes(data.tobytes())
    assert not any(finding.grave for finding in find(open_source(coco_folder.spec)))
    assert not check(coco_folder.spec).errors


def test_many_errors_are_cut_short(coco_folder, capsys):
    box = coco_folder.content["annotations"][0] | {"bbox": None}
    coco_folder.content["annotations"] += [box | {"id": 500 + i} for i in range(30)]
    coco_folder.write()
    assert prepare.main([coco_folder.spec, "--check"]) == 2
    out = capsys.readouterr().out
    assert out.count("error: annotation") == 20
    assert "error: and 10 more; --json=FILE lists all" in out


def test_drawn_images_can_be_checked_too():
    report = check("shapes:12")
    assert (report.images, report.errors) == (12, [])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["prepare", "coco:x:y", "--check"], "image folder x does not exist"),
        (["prepare", "tfds:coco/2017"], "--images, --instances, --split missing"),
    ],
)
def test_what_cannot_be_opened_is_one_line(arguments, told, capsys):
    assert command_line.main(arguments) == 2
    assert told in capsys.readouterr().err.splitlines()[-1]
