"""`predict` around the detector: what it reads and writes, and when it ends early.

The detector is a few lines of NumPy that find the bright rectangle in an image.
"""

import dataclasses
import errno
import io
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from drkd_jax import __main__ as command_line
from drkd_jax.cli import predict
from drkd_jax.data.sources import open_source
from drkd_jax.data.sources.records import Category
from drkd_jax.types import Batch, Detections
from tests.cli.a_detector import detector

CANVAS = 64
ORIENTATION = 0x0112  # of EXIF


def bright_rectangle(_, batch: Batch) -> Detections:
    """One box per image, around its bright pixels; a second, empty one with a lower score."""
    images, sizes = np.asarray(batch.images), np.asarray(batch.sizes)
    boxes = np.zeros((len(images), 2, 4), np.float32)
    for row, (image, (height, width)) in enumerate(zip(images, sizes, strict=True)):
        ys, xs = np.nonzero(image[:height, :width].mean(axis=-1) > 100)
        if len(ys):
            boxes[row, 0] = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
    valid = boxes[:, :1, 2:].any(axis=-1).repeat(2, axis=1)
    scores = np.tile(np.float32([0.9, 0.2]), (len(images), 1))
    return Detections(boxes, scores, np.tile(np.int32([1, 0]), (len(images), 1)), valid)


@pytest.fixture
def trained(monkeypatch):
    categories = Category(2**53 + 1, "nut"), Category("b", "bolt")
    made = detector(bright_rectangle, categories, side=CANVAS, batch_size=4, num_threads=2)
    monkeypatch.setattr(predict, "load_named", lambda *_: made)
    return made


def test_classes_without_names_are_numbered_from_one(trained):
    assert trained.classes == trained.categories
    nameless = dataclasses.replace(trained, categories=())
    assert nameless.classes == ((1, "class 1"), (2, "class 2"))


def make_image(height=32, width=64, box=(8, 4, 40, 16), mode="RGB", **save) -> bytes:
    """A dark image with a bright box (xyxy), as PNG or as set by `save`."""
    pixels = np.full((height, width), 5, np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = 250
    image = Image.fromarray(pixels).convert(mode, dither=Image.Dither.NONE)
    stream = io.BytesIO()
    image.save(stream, **{"format": "PNG", **save})
    return stream.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return make_image(format="JPEG", quality=95, exif=exif.tobytes())


def call(out, *paths, **flags) -> tuple[int, dict]:
    options = [f"--{name}={value}" for name, value in flags.items()]
    code = command_line.main(["predict", "--workdir=x", f"--out={out}", *options, *map(str, paths)])
    return code, json.loads((out / "detections.json").read_text())


def by_name(result: dict) -> dict[str, list]:
    """Boxes with scores above 0.5 by file name, as xywh."""
    names = {image["id"]: os.path.basename(image["file_name"]) for image in result["images"]}
    found: dict[str, list] = {name: [] for name in names.values()}
    for row in result["annotations"]:
        if row["score"] > 0.5:
            found[names[row["image_id"]]].append(row["bbox"])
    return found


WHOLE = {
    "gray.png": make_image(mode="L"),
    "alpha.png": make_image(mode="RGBA"),
    "palette.png": make_image(mode="P"),
    "black and white.png": make_image(mode="1"),
    "photo.JPG": make_image(format="JPEG", quality=95),
    "übung 1.bmp": make_image(format="BMP"),
    "写真.webp": make_image(format="WEBP", lossless=True),
    "no suffix": make_image(),
    "deep/gray.png": make_image(),
}


def test_a_folder_of_all_kinds(trained, tmp_path, capsys):
    folder, out = tmp_path / "in", tmp_path / "out"
    for name, content in WHOLE.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    depth = np.full((32, 64), 5 << 8, np.uint16)
    depth[4:16, 8:40] = 250 << 8
    cv2.imwrite(str(folder / "sixteen bits.png"), depth)
    (folder / "notes.txt").write_text("x")
    code, result = call(out, folder)
    assert code == 0
    printed = capsys.readouterr()
    assert "1 file is left out (no image)" in printed.err
    assert len(printed.out.splitlines()) == 10
    assert result["skipped"] == []
    assert len(result["images"]) == 10
    for boxes in by_name(result).values():
        for box in boxes:
            np.testing.assert_allclose(box, [8, 4, 32, 12], atol=1)
    drawings = [image["drawing"] for image in result["images"]]
    assert sorted([*drawings, "detections.json"]) == sorted(os.listdir(out))
    assert {"gray.png", "gray_2.png", "übung 1.png", "写真.png"} <= set(drawings)
    ids = [row["id"] for row in result["annotations"]]
    assert ids == list(range(1, 21))
    assert {row["category_id"] for row in result["annotations"]} == {2**53 + 1, "b"}
    assert result["categories"] == [{"id": 2**53 + 1, "name": "nut"}, {"id": "b", "name": "bolt"}]


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_turned_photograph_is_taken_as_it_is_shown(trained, tmp_path, orientation):
    (tmp_path / "a.jpg").write_bytes(turned(orientation))
    _, result = call(tmp_path / "out", tmp_path / "a.jpg")
    (image,) = result["images"]
    x, y, w, h = 8, 4, 32, 12  # of the pixels as stored, 64 wide and 32 high
    wanted = {
        1: (64, 32, [x, y, w, h]),
        3: (64, 32, [64 - x - w, 32 - y - h, w, h]),
        6: (32, 64, [32 - y - h, x, h, w]),
        8: (32, 64, [y, 64 - x - w, h, w]),
    }[orientation]
    assert (image["width"], image["height"]) == wanted[:2]
    np.testing.assert_allclose(by_name(result)["a.jpg"][0], wanted[2], atol=1)
    drawn = cv2.imread(str(tmp_path / "out" / "a.png"))
    assert (drawn.shape[1] > drawn.shape[0]) == (wanted[0] > wanted[1])


BROKEN = {
    "empty.jpg": b"",
    "cut.png": make_image()[:60],
    "page.jpg": b"<!DOCTYPE html><html></html>",
    "pointer.jpg": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
    "clip.mp4": b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom",
}


def test_what_is_broken_is_named_and_the_rest_goes_on(trained, tmp_path, capsys):
    for name, content in {**BROKEN, "a.png": make_image(), "b.png": make_image()}.items():
        (tmp_path / name).write_bytes(content)
    named = [tmp_path / name for name in ("a.png", *BROKEN, "none.jpg", "b.png")]
    code, result = call(tmp_path / "out", *named)
    assert code == 2
    printed = capsys.readouterr().err
    for name in (*BROKEN, "none.jpg"):
        assert f"error: {tmp_path / name}: " in printed
    assert "6 of 8 images could not be read" in printed
    assert [row["file_name"] for row in result["skipped"]] == list(map(str, named[1:-1]))
    assert by_name(result).keys() == {"a.png", "b.png"}
    assert [image["id"] for image in result["images"]] == [1, 8]


def test_nothing_but_broken_images(trained, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no image")
    code, result = call(tmp_path / "out", tmp_path / "a.jpg")
    assert code == 2
    assert result["images"] == result["annotations"] == []


def test_an_empty_folder_is_refused(trained, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    assert command_line.main(["predict", "--workdir=x", f"--out={tmp_path}", f"{tmp_path}/in"]) == 2
    assert "in: holds no image" in capsys.readouterr().err


def test_the_results_of_a_run_are_not_replaced(trained, tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(make_image())
    (tmp_path / "W" / "checkpoints").mkdir(parents=True)
    arguments = ["predict", "--workdir=x", f"--out={tmp_path / 'W'}", str(tmp_path / "a.png")]
    assert command_line.main(arguments) == 2
    assert "is the work folder of a run" in capsys.readouterr().err


def test_the_best_boxes_of_an_image(trained, tmp_path):
    (tmp_path / "a.png").write_bytes(make_image())
    _, result = call(tmp_path / "out", tmp_path / "a.png", max=1)
    assert [row["score"] for row in result["annotations"]] == [pytest.approx(0.9)]


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ({}, "1 object above 0.3"),
        ({"score": 0.1}, "2 objects above 0.1"),
        ({"keep": 0.5}, "1 object above 0.5"),  # what lies between 0.3 and 0.5 is nowhere
        ({"keep": 0.1}, "1 object above 0.3"),
    ],
)
def test_the_score_that_is_told_is_the_one_that_counts(trained, tmp_path, capsys, flags, line):
    (tmp_path / "a.png").write_bytes(make_image())
    call(tmp_path / "out", tmp_path / "a.png", **flags)
    assert f"a.png: {line}, " in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--score=30", "--keep=1.5", "--keep=-1", "--score=nan"])
def test_a_score_that_no_detector_gives_is_refused(trained, tmp_path, capsys, flag):
    (tmp_path / "a.png").write_bytes(make_image())
    out = tmp_path / "out"
    call = ["predict", "--workdir=x", f"--out={out}", flag, str(tmp_path / "a.png")]
    assert command_line.main(call) == 2
    flag, value = flag.split("=")
    assert f"argument {flag}: {value} is not a score: scores lie between 0 and 1" in (
        capsys.readouterr().err
    )
    assert not out.exists()


@pytest.mark.parametrize("relative", [False, True])
def test_what_a_teacher_is_sure_of_is_a_set_to_train_on(
    trained, tmp_path, monkeypatch, relative, capsys
):
    """Only boxes above one score, no drawings, and a file that a training can read directly."""
    root = tmp_path / "images"
    (root / "deep").mkdir(parents=True)
    for name in ("a.png", "deep/b.png"):
        (root / name).write_bytes(make_image())
    if relative:
        monkeypatch.chdir(tmp_path)
        root = Path("images")
    out = tmp_path / "out"
    command = ["predict", "--workdir=x", f"--out={out}", "--keep=0.5", "--no-drawings"]
    assert command_line.main([*command, f"--root={root}", str(root)]) == 0
    assert [path.name for path in out.iterdir()] == ["detections.json"]
    source = open_source(f"coco:{root}:{out}/detections.json")
    assert source.table.names == ("a.png", os.path.join("deep", "b.png"))
    assert source.table.num_boxes.tolist() == [1, 1]
    assert [c.name for c in source.categories] == ["nut", "bolt"]
    for index in range(2):
        np.testing.assert_array_equal(source.record(index).boxes, [[8, 4, 40, 16]])
    assert command_line.main([*command, f"--root={root}/deep", str(root)]) == 2
    assert f"{root}/a.png does not lie in it" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_said_before_the_work(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(predict, "load_named", lambda *_: pytest.fail("work was done before"))
    (tmp_path / "a.png").write_bytes(make_image())
    for out in ("a.png", "a.png/out"):
        arguments = ["predict", "--workdir=x", f"--out={tmp_path / out}", str(tmp_path / "a.png")]
        assert command_line.main(arguments) == 2
        assert f"--out={tmp_path / out}: cannot be written" in capsys.readouterr().err


def many(folder, count: int) -> list[str]:
    folder.mkdir()
    for i in range(count):
        (folder / f"{i:03d}.png").write_bytes(make_image())
    return [str(folder / f"{i:03d}.png") for i in range(count)]


@pytest.mark.parametrize("full", [False, True])
def test_what_was_found_is_kept_where_it_ends_early(trained, tmp_path, capsys, monkeypatch, full):
    paths, out, seen = many(tmp_path / "in", 20), tmp_path / "out", []
    write = predict.Path.write_bytes

    def failing(self, data):
        if self.name == "007.png":
            seen.extend(os.listdir(out))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) if full else KeyboardInterrupt
        return write(self, data)

    monkeypatch.setattr(predict.Path, "write_bytes", failing)
    code, result = call(out, *paths)
    assert code == (2 if full else 130)
    assert len([name for name in seen if name.endswith(".png")]) == 7  # as it goes
    assert [image["id"] for image in result["images"]] == list(range(1, 8))
    assert len(result["annotations"]) == 14
    assert not (out / "detections.json.new").exists()
    said = capsys.readouterr().err
    if full:
        assert "007.png: cannot be written (the disk is full)" in said
    else:
        assert f"interrupted: 7 of 20 images are done; what was found is in {out}" in said
