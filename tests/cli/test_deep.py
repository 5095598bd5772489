"""Images of 12 bits in 16: `predict` reports it once, and `--depth` corrects it."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from drkd_jax import __main__ as command_line
from drkd_jax.cli import evaluate, predict
from drkd_jax.cli.deep import DeepWatch
from drkd_jax.data.sources.records import Category
from drkd_jax.types import Batch, Detections
from tests.cli.a_detector import detector


def deep(path: Path, brightest: int) -> Path:
    values = np.linspace(0, brightest, 32 * 64).reshape(32, 64).round().astype(np.uint16)
    assert cv2.imwrite(str(path), values)
    return path


@pytest.fixture
def seen(monkeypatch) -> list[int]:
    """The maximum of each image that the detector gets; it finds nothing."""
    brightest: list[int] = []

    def nothing(_, batch: Batch) -> Detections:
        count = len(batch.images)
        brightest.extend(int(image.max()) for image in np.asarray(batch.images))
        scores, labels = np.zeros((count, 1), np.float32), np.zeros((count, 1), np.int32)
        return Detections(np.zeros((count, 1, 4), np.float32), scores, labels, scores > 0)

    made = detector(nothing, [Category(1, "nut")], side=64, batch_size=1)
    for command in (predict, evaluate):
        monkeypatch.setattr(command, "load_named", lambda *_: made)
    return brightest


def call(tmp_path: Path, *arguments: str) -> int:
    out = f"--out={tmp_path / 'out'}"
    return command_line.main(["predict", "--workdir=x", out, *arguments])


def test_dark_images_are_told_once_and_mended_by_the_flag(seen, tmp_path, capsys):
    cv2.imwrite(str(tmp_path / "0.png"), np.full((32, 64), 9, np.uint8))  # dark, of 8 bits
    paths = [str(deep(tmp_path / f"{i}.png", 4095 - 2000 * (i == 1))) for i in range(1, 5)]
    assert call(tmp_path, str(tmp_path / "0.png"), *paths) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"warning: {paths[0]} holds 16-bit numbers, and the brightest of 4 such images looked "
        "at is 4095 of 65535: read as 16 bits it comes out nearly black. --depth=12 makes 4095 "
    )
    assert max(seen) == 15
    seen.clear()
    assert call(tmp_path, *paths, "--depth=12") == 0
    assert capsys.readouterr().err == ""
    assert max(seen) == 255


@pytest.mark.parametrize("brightest", [65535, 33000, 0])
def test_nothing_is_said_of_images_that_use_their_bits_or_are_black(
    seen, tmp_path, capsys, brightest
):
    assert call(tmp_path, str(deep(tmp_path / "a.png", brightest))) == 0
    assert capsys.readouterr().err == ""


def test_an_image_that_is_dark_by_itself_among_bright_ones(tmp_path):
    paths = [deep(tmp_path / "a.png", 900), deep(tmp_path / "b.png", 65535)]
    assert DeepWatch(paths, 0).look(0, np.full((4, 4, 3), 3, np.uint8)) == ""


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    paths = [tmp_path / "pipe", deep(tmp_path / "b.png", 4095)]
    said: list[str] = []

    def look() -> None:
        said.extend(DeepWatch(paths, 0).look(i, np.zeros((4, 4, 3), np.uint8)) for i in (0, 1))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(timeout=30)
    assert [bool(text) for text in said] == [False, True]


@pytest.mark.parametrize("depth", [7, 17, -1])
def test_a_depth_that_means_nothing_is_refused_before_the_work(
    tmp_path, capsys, monkeypatch, depth
):
    monkeypatch.setattr(predict, "load_named", lambda *_: pytest.fail("work was done before"))
    assert call(tmp_path, str(tmp_path / "a.png"), f"--depth={depth}") == 2
    assert f"argument --depth: '{depth}' is not 8 to 16 bits" in capsys.readouterr().err


def test_a_score_is_of_the_numbers_that_were_asked_for(seen, tmp_path, capsys):
    deep(tmp_path / "a.png", 4095)
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 32, "width": 64}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 4, 20, 20], "iscrowd": 0}
        ],
        "categories": [{"id": 1, "name": "nut"}],
    }
    (tmp_path / "val.json").write_text(json.dumps(content))
    data = f"--data=coco:{tmp_path}:{tmp_path / 'val.json'}"
    for depth in ("", "--depth=12"):
        asked = [depth] if depth else []
        out = f"--out={tmp_path / 'scores'}"
        assert command_line.main(["evaluate", "--workdir=x", data, out, *asked]) == 0
    assert [value for value in seen if value] == [15, 255]  # the others only fill up the batches
