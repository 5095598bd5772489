"""Which images are found, and the names of their drawings."""

import errno
import itertools
import os
import unicodedata
from pathlib import Path

import cv2
import numpy as np
import pytest

from drkd_jax.cli.inputs import drawing_names, find_images, marked
from drkd_jax.errors import UserError

PNG = b"\x89PNG\r\n\x1a\n"


def touch(folder: Path, *names: str, content: bytes = b"x") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def names(*paths: str, out: str = "out") -> list[str]:
    return drawing_names([Path(path) for path in paths], Path(out))


def test_a_stem_alone_keeps_its_name():
    assert names("a.jpg", "b.png", "c") == ["a.png", "b.png", "c.png"]


def test_equal_stems_are_numbered_past_what_others_are_called():
    assert names("a.jpg", "a.png", "a_1.png") == ["a.png", "a_2.png", "a_1.png"]
    assert names("x/a.jpg", "y/a.jpg", "z/a_2.jpg") == ["a.png", "a_3.png", "a_2.png"]
    assert names("a_2.jpg", "a.jpg", "a_2.png", "a.png") == [
        "a_2.png",
        "a.png",
        "a_2_2.png",
        "a_3.png",
    ]


def test_no_two_names_are_the_same_on_any_file_system():
    composed, apart = "é", unicodedata.normalize("NFD", "é")
    stems = ["a", "A", "a_2", "A_2", "ß", "ss", "SS", composed, apart, "b c", "ф"]
    for order in itertools.islice(itertools.permutations(stems, 5), 0, None, 37):
        found = names(*(f"{place}/{stem}.jpg" for stem in order for place in ("x", "y")))
        keys = {unicodedata.normalize("NFC", name).casefold() for name in found}
        assert len(keys) == len(found) == 10


def test_no_drawing_takes_the_place_of_an_image(tmp_path):
    touch(tmp_path, "a.png", "b.jpg", "b_2.PNG")
    paths = [tmp_path / name for name in ("a.png", "b.jpg", "b_2.PNG")]
    found = drawing_names(paths, tmp_path)
    assert found == ["a_2.png", "b.png", "b_2_2.png"]


def test_nor_that_of_an_image_that_lies_there_and_is_not_read(tmp_path):
    png = cv2.imencode(".png", np.full((9, 8, 3), 7, np.uint8))[1].tobytes()
    touch(tmp_path, "a.png", "c_2.png", content=png)
    touch(tmp_path, "b.png", "c.png", content=marked(png))  # from an earlier call
    paths = [tmp_path / name for name in ("a.jpg", "b.jpg", "x/c.jpg", "y/c.jpg")]
    assert drawing_names(paths, tmp_path) == ["a_2.png", "b.png", "c.png", "c_3.png"]


def test_a_name_too_long_for_a_drawing_is_cut():
    long, umlauts = "x" * 251, "\u00fc" * 125
    paths = [f"{place}/{stem}.jpg" for place in "pq" for stem in (long, umlauts)]
    found = names(*paths, "r/" + "y" * 255)
    assert len(set(found)) == 5
    assert max(len(name.encode()) for name in found) <= 255
    assert all(name.endswith(".png") for name in found)
    assert found[1].startswith("\u00fc" * 120)


def test_names_take_time_in_proportion():
    many = [f"{i % 7}/{i // 7}.jpg" for i in range(7000)] + ["x.jpg"] * 7000
    assert len(set(names(*many))) == 14000


def test_folders_are_walked_and_the_rest_is_left_aside(tmp_path):
    touch(tmp_path, "b.jpg", "a/c.PNG", "a/.hidden.jpg", ".git/d.jpg", "notes.txt", "clip.mp4")
    touch(tmp_path, "without_suffix", content=PNG)
    found = find_images([tmp_path])
    names = [path.relative_to(tmp_path).as_posix() for path in found.paths]
    assert sorted(names) == ["a/c.PNG", "b.jpg", "without_suffix"]
    assert found.notes == (f"{tmp_path}: 2 files are left out (no image)",)


def test_links_to_folders_are_followed_once(tmp_path):
    touch(tmp_path, "set/a.jpg", "elsewhere/b.jpg")
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "set")
    os.mkfifo(tmp_path / "set" / "pipe")
    found = find_images([tmp_path / "set"])
    names = [path.relative_to(tmp_path / "set").as_posix() for path in found.paths]
    assert names == ["a.jpg", "linked/b.jpg"]


def test_results_in_a_folder_are_no_input(tmp_path):
    touch(tmp_path, "a.jpg", "out/a.png")
    assert find_images([tmp_path], tmp_path / "out").paths == (tmp_path / "a.jpg",)
    touch(tmp_path, "b.png")
    assert len(find_images([tmp_path], tmp_path).paths) == 3


def test_drawings_of_earlier_calls_are_no_input(tmp_path):
    png = cv2.imencode(".png", np.full((9, 8, 3), 7, np.uint8))[1].tobytes()
    touch(tmp_path, "a.jpg", "own.png", content=png)
    touch(tmp_path, "a.png", "run1/a.png", content=marked(png))
    assert (cv2.imread(str(tmp_path / "a.png")) == 7).all()
    found = find_images([tmp_path], tmp_path)
    assert [path.name for path in found.paths] == ["a.jpg", "own.png"]
    assert found.notes == (f"{tmp_path}: 2 earlier drawings are left out",)
    assert drawing_names(found.paths, tmp_path) == ["a.png", "own_2.png"]
    assert len(find_images([tmp_path / "a.png"]).paths) == 1  # if named, it is used


def test_a_file_is_taken_whatever_it_is_and_once(tmp_path):
    touch(tmp_path, "clip.mp4", "a.jpg")
    named = [tmp_path / "clip.mp4", tmp_path / "none.jpg", tmp_path / "a.jpg", tmp_path]
    found = find_images(named)
    assert [path.name for path in found.paths] == ["clip.mp4", "none.jpg", "a.jpg"]
    assert "1 file is named more than once, and used once" in found.notes


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}: holds no image"):
        find_images([tmp_path])
    touch(tmp_path, "full/a.jpg", "empty/notes.txt")
    found = find_images([tmp_path / "empty", tmp_path / "full"])
    assert len(found.paths) == 1
    assert found.notes[0] == f"{tmp_path / 'empty'}: holds no image"


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    touch(tmp_path, "a.jpg", "locked/b.jpg")
    listed = os.scandir

    def refuse(path):
        if os.path.basename(path) == "locked":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = find_images([tmp_path])
    assert found.paths == (tmp_path / "a.jpg",)
    assert found.notes == (f"{tmp_path / 'locked'}: cannot be read (Permission denied)",)
    with pytest.raises(UserError, match="locked: cannot be read"):
        find_images([tmp_path / "locked"])
