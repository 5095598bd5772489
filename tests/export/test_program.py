"""`export --to=stablehlo`: JAX alone runs the file, with the detections of our predictor."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from drkd_jax import models
from drkd_jax.__main__ import main
from drkd_jax.cli.detector import read, ready
from drkd_jax.models.arrays import flatten
from drkd_jax.step.sharding import put_batch
from drkd_jax.types import Batch
from drkd_jax.weights.opening import load
from drkd_jax.weights.ours import About, write_ours
from tests.training import tiny

pytest.importorskip("flatbuffers", reason="needs flatbuffers, by which jax.export writes")

CANVAS = (64, 96)
IMAGES = 20
SCORE, PIXEL = 1e-4, 0.05
NAMES = ((7, "disc"), (9, "bitten disc"))

# A user of the file has only JAX and NumPy.
STRANGER = """
import sys
import jax, numpy as np
given = np.load(sys.argv[2])
program = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
found = program.call(given["images"], given["sizes"])
assert not any(name.split(".")[0] in ("drkd_jax", "flax") for name in sys.modules)
np.savez(sys.argv[3], **found)
"""


def write_detector(path, kind, **own):
    """Writes a small detector with random weights and different scores, in a file of ours."""
    config = tiny.config("retinanet" if kind == "retinanet" else "faster_rcnn")
    settings = {key: value for key, value in config["student"].items() if key != "init"}
    settings |= {"detector": kind} | own
    detector = models.init_detector(settings, 2, 7)
    arrays = flatten(nnx.as_pure(nnx.state(detector)))
    rng = np.random.default_rng(0)
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    for name, array in arrays.items():
        if name.endswith("kernel") and name.split("/")[0].split(".")[0] in ("head", "rpn", "roi"):
            scale = 1.5 / np.sqrt(array[..., 0].size)
            arrays[name] = rng.normal(0, scale, array.shape).astype(np.float32)
    data = {key: value for key, value in config["data"].items() if key not in ("train", "val")}
    write_ours(path, arrays, About("detector", settings, 2, NAMES, {"step": 4}, data))


def draw_images(number):
    rng = np.random.default_rng(1)
    sizes = np.stack([rng.integers(40, 65, number), rng.integers(60, 97, number)], 1)
    coarse = rng.integers(0, 256, (number, 8, 12, 3), np.uint8)
    images = coarse.repeat(8, axis=1).repeat(8, axis=2)
    for image, (height, width) in zip(images, sizes, strict=True):
        image[height:], image[:, width:] = 0, 0
    return images, sizes.astype(np.int32)


def ours(path, images, sizes):
    trained = ready(read(load(path)), 0)
    number = len(images)
    batch = Batch(
        images=images,
        sizes=sizes,
        flip=np.zeros(number, bool),
        boxes=np.zeros((number, 1, 4), np.float32),
        labels=np.zeros((number, 1), np.int32),
        valid=np.zeros((number, 1), bool),
        image_valid=np.ones(number, bool),
        index=np.arange(number, dtype=np.int32),
        scale=np.ones((number, 2), np.float32),
    )
    found = trained.predict(trained.arrays, put_batch(batch, trained.mesh))
    return {name: np.asarray(value) for name, value in found._asdict().items()}


def by_stranger(file, images, sizes, folder):
    given, found = folder / "given.npz", folder / "found.npz"
    np.savez(given, images=images, sizes=sizes)
    # This environment without the path to the package.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    call = [sys.executable, "-c", STRANGER, *map(str, (file, given, found))]
    done = subprocess.run(call, cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return dict(np.load(found))


def assert_same(found, wanted):
    """Compares the detections of both within the tolerances."""
    np.testing.assert_array_equal(found["valid"], wanted["valid"])
    assert wanted["valid"].sum() > 2 * len(wanted["valid"])
    rows = wanted["valid"]
    np.testing.assert_array_equal(found["labels"][rows], wanted["labels"][rows])
    np.testing.assert_allclose(found["scores"][rows], wanted["scores"][rows], rtol=0, atol=SCORE)
    np.testing.assert_allclose(found["boxes"][rows], wanted["boxes"][rows], rtol=0, atol=PIXEL)


@pytest.mark.parametrize("kind", ["retinanet", "faster_rcnn"])
def test_a_stranger_finds_what_we_find(kind, tmp_path, capsys):
    weights, out = tmp_path / "student.safetensors", tmp_path / "student.stablehlo"
    write_detector(weights, kind)
    assert main(["export", f"--weights={weights}", "--to=stablehlo", str(out)]) == 0
    assert "any number of images on 64x96 pixels, on cpu, cuda" in capsys.readouterr().out
    images, sizes = draw_images(IMAGES)
    assert_same(by_stranger(out, images, sizes, tmp_path), ours(weights, images, sizes))

    about = json.loads((tmp_path / "student.stablehlo.json").read_text())
    assert about["classes"] == [{"id": 7, "name": "disc"}, {"id": 9, "name": "bitten disc"}]
    assert about["normalised_inside"] == {
        "mean": [120.0] * 3,
        "std": [60.0] * 3,
        "channels": "rgb",
    }
    assert about["inputs"]["images"]["shape"] == ["B", 64, 96, 3]
    assert about["platforms"] == ["cpu", "cuda"]
    assert about["source"] == {"name": "student.safetensors", "step": 4}


def test_without_nms_every_box_and_score_comes_out(tmp_path):
    weights, out = tmp_path / "student.safetensors", tmp_path / "student.stablehlo"
    write_detector(weights, "retinanet")
    asked = ["--no-nms", "--batch=2", "--platforms=cpu", "--pixels=float32", "--canvas=64x64"]
    call = ["export", f"--weights={weights}", "--to=stablehlo", *asked, str(out)]
    assert main(call) == 0
    images, sizes = draw_images(2)
    images, sizes = images[:, :, :64].astype(np.float32), np.minimum(sizes, 64)
    exported = jax.export.deserialize(bytearray(out.read_bytes()))
    assert exported.platforms == ("cpu",)
    found = {name: np.asarray(value) for name, value in exported.call(images, sizes).items()}
    anchors = 9 * sum(side * side for side in (4, 2))
    assert found["boxes"].shape == (2, anchors, 1, 4)
    assert found["scores"].shape == (2, anchors, 2)
    wanted = ours(weights, images, sizes)
    for row in range(2):  # each detection is one of the boxes
        for number in np.flatnonzero(wanted["valid"][row]):
            scores = found["scores"][row, :, wanted["labels"][row, number]]
            far = np.abs(found["boxes"][row, :, 0] - wanted["boxes"][row, number]).max(axis=1)
            same = np.abs(scores - wanted["scores"][row, number]) < SCORE
            assert np.any(same & (far < PIXEL))
    about = json.loads((tmp_path / "student.stablehlo.json").read_text())
    assert about["inputs"]["images"] == {
        "dtype": "float32",
        "shape": [2, 64, 64, 3],
        "meaning": "RGB, 0..255; the image in the top left corner of the canvas",
    }
    assert about["suppressed_inside"] is False


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--to=stablehlo", "x.bin"], "has to end in .stablehlo"),
        (["--to=stablehlo", "--platforms=cpu,abacus", "x.stablehlo"], "'abacus' is not one of"),
        (
            ["--to=stablehlo", "--canvas=64", "x.stablehlo"],
            "--canvas: '64' is not two whole numbers",
        ),
        (["--to=stablehlo", "--canvas=60x90", "x.stablehlo"], "multiples of 32; use 64x96"),
        (["--to=stablehlo", "--canvas=64x0", "x.stablehlo"], "--canvas: 0 is not 1 or more"),
        (["--to=stablehlo", "--batch=0", "x.stablehlo"], "0 is not 1 or more"),
        (["--to=safetensors", "--no-nms", "x.safetensors"], "--no-nms belongs to programs"),
        (["--format=orbax", "--canvas=64x96", "x"], "--canvas belongs to programs"),
    ],
)
def test_user_faults_are_one_line_and_exit_code_2(given, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_detector(tmp_path / "student.safetensors", "retinanet")
    assert main(["export", "--weights=student.safetensors", *given]) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert len(printed.splitlines()) == 1
    assert not (tmp_path / given[-1]).exists()
