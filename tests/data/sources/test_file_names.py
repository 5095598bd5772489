"""File names from other machines: changed only if exactly one file matches, and reported once."""

from __future__ import annotations

import pytest

from drkd_jax.data.checking.check import check
from drkd_jax.data.checking.findings import find
from drkd_jax.data.sources import open_source
from drkd_jax.errors import UserError


def move(folder, name: str, path: str) -> None:
    """Names image 0 `name` in the file, and moves it to `path`."""
    target = folder.images / path
    target.parent.mkdir(parents=True, exist_ok=True)
    (folder.images / "a.jpg").rename(target)
    folder.content["images"][0]["file_name"] = name
    folder.write()


MENDED = {
    "backslash": ("cam\\1\\a.jpg", "cam/1/a.jpg", "with / for \\"),
    "space": ("my%20a.jpg", "my a.jpg", "with %20 and the like decoded"),
    "umlaut": ("%C3%A4.jpg", "\u00e4.jpg", "with %20 and the like decoded"),
    "both": ("cam\\my%20a.jpg", "cam/my a.jpg", "with / for \\ and %20 and the like decoded"),
    "absolute": ("/home/me/data/a1.jpg", "a1.jpg", "without the folders in front"),
    "absolute, deeper": ("/home/me/cam/a1.jpg", "cam/a1.jpg", "without the folders in front"),
    "windows": ("C:\\Users\\me\\a1.jpg", "a1.jpg", "without the folders in front"),
    "url": ("https://host/x/a1.jpg?w=9", "a1.jpg", "without the folders in front"),
    "label studio": (
        "/data/local-files/?d=cam%2Fa1.jpg",
        "cam/a1.jpg",
        "without the folders in front",
    ),
    "label studio, plain": (
        "/data/local-files/?d=x/a 1.jpg",
        "a 1.jpg",
        "without the folders in front",
    ),
    "capitals of windows": ("D:\\Pics\\A1.JPG", "a1.jpg", "with other capital letters or accents"),
    "url, a sign of its own": (
        "https://host/x/a%3F1.jpg?w=9",
        "a?1.jpg",
        "without the folders in front",
    ),
    "sub-folder": ("train2017/a1.jpg", "a1.jpg", "without the folders in front"),
    "capitals": ("A1.JPG", "a1.jpg", "with other capital letters or accents"),
    "decomposed": ("a\u0308.jpg", "\u00e4.jpg", "with other capital letters or accents"),
}


@pytest.mark.parametrize("kind", MENDED)
def test_read_another_way_and_said_once(coco_folder, kind):
    name, path, way = MENDED[kind]
    move(coco_folder, name, path)
    source = open_source(coco_folder.spec)
    assert source.record(0).image.shape == (60, 80, 3)
    assert source.coco_ground_truth()["images"][0]["file_name"] == name
    told = f"1 file name is not there as written and read {way}: {name} as {path}"
    assert [finding.text for finding in find(source)].count(told) == 1
    report = check(coco_folder.spec)
    assert told in report.warnings
    assert not report.errors
    assert not any("not in the instances file" in text for text in report.warnings)


@pytest.mark.parametrize("name", ["./a.jpg", "sub//a.jpg", "a%20b.jpg", "a\\b.jpg", "A b.jpg"])
def test_a_name_that_is_there_as_it_stands_is_not_touched(coco_folder, name):
    move(coco_folder, name, name)
    (coco_folder.images / "a b.jpg").write_bytes(b"another")
    source = open_source(coco_folder.spec)
    assert source.mended == []
    assert source.record(0).image.shape == (60, 80, 3)


def test_two_names_for_one_file_are_no_guess(coco_folder):
    """Frames of two cameras without their folders: the image could be from either."""
    move(coco_folder, "cam1/0.jpg", "0.jpg")
    coco_folder.content["images"][1]["file_name"] = "cam2/0.jpg"
    coco_folder.write()
    source = open_source(coco_folder.spec)
    assert source.mended == []
    with pytest.raises(UserError, match=r"cam1/0\.jpg .*cannot be read"):
        source.record(0)


def test_two_files_for_one_name_are_no_guess(coco_folder):
    move(coco_folder, "PIC.jpg", "pic.jpg")
    (coco_folder.images / "Pic.jpg").write_bytes(b"another")
    with pytest.raises(UserError, match="cannot be read"):
        open_source(coco_folder.spec).record(0)


@pytest.mark.parametrize("same", ["a.jpg", "./a.jpg", ".//a.jpg"])
def test_one_file_under_two_entries_is_said(coco_folder, same):
    coco_folder.content["images"][3] |= {"file_name": same, "height": 60, "width": 80}
    coco_folder.write()
    (told,) = [f for f in find(open_source(coco_folder.spec)) if "listed as several" in f.text]
    assert told.grave
    assert told.text.startswith("1 file is listed as several images: ")
    assert told.text in check(coco_folder.spec).warnings


@pytest.mark.parametrize(
    ("name", "there", "named"),
    [
        ("a.jpg", ["a.png"], "a.png"),
        ("a.png", ["a.jpeg"], "a.jpeg"),
        ("cam/a.jpg", ["cam/a.png"], "a.png"),
        ("a.Jpg", ["a.JPG", "a.jpg"], "a.JPG and a.jpg"),  # two, so none is taken by itself
        ("a.jpg", ["a.1", "a.2", "a.3", "a.4"], "a.1 and a.2 and a.3 and others"),
    ],
)
def test_a_missing_image_hints_at_files_of_its_stem(coco_folder, name, there, named):
    move(coco_folder, name, there[0])
    for more in there[1:]:
        (coco_folder.images / more).write_bytes(b"another")
    with pytest.raises(UserError) as raised:
        open_source(coco_folder.spec).record(0)
    wanted = f"No such file or directory; the folder holds {named}: correct 'file_name', or rename"
    assert wanted in str(raised.value)
    assert str(coco_folder.images / name) in str(raised.value)
    assert str(raised.value) in check(coco_folder.spec).errors


def test_a_missing_image_without_such_a_file_has_no_hint(coco_folder):
    move(coco_folder, "none/a1.jpg", "a.png")
    with pytest.raises(UserError, match=r"No such file or directory$"):
        open_source(coco_folder.spec).record(0)


@pytest.mark.parametrize(
    ("asked", "there"),
    [
        (".", "images"),
        ("images/more", "images"),
        ("other", "images"),
        ("far", "far/in/images"),
    ],
)
def test_an_image_folder_that_is_not_it_hints_at_the_one_that_is(coco_folder, asked, there):
    root = coco_folder.images.parent
    wrong, right = root / asked, root / there
    wrong.mkdir(parents=True, exist_ok=True)
    right.parent.mkdir(parents=True, exist_ok=True)
    if not right.exists():
        coco_folder.images.rename(right)
    source = open_source(coco_folder.spec.replace(str(coco_folder.images), str(wrong), 1))
    for index in (1, 0):
        with pytest.raises(UserError) as raised:
            source.record(index)
        wanted = f"No such file or directory; {right} holds it: is that IMAGES_DIR?"
        assert str(raised.value).endswith(wanted)
