"""`export --to=onnx`: onnxruntime finds the same as our predictor."""

import dataclasses
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drkd_jax.__main__ import main
from drkd_jax.cli.detector import read
from drkd_jax.errors import UserError
from drkd_jax.export.onnx_pieces import convert, pieces
from drkd_jax.export.program import program
from drkd_jax.ops.onnx_calls import suppress
from drkd_jax.weights.opening import load
from tests.export.test_program import (
    PIXEL,
    SCORE,
    assert_same,
    draw_images,
    ours,
    write_detector,
)
from tests.training import tiny

needed = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("jax2onnx", "onnx", "onnxruntime")),
    reason="needs the extra onnx",
)
IMAGES, BATCH = 20, 4
# The head has three classes, the data the last and the first of them.
DROPPED = {"head_classes": 3, "class_ids": (2, 0)}

VERSION_2 = {"rpn_convs": 2, "roi_convs": 2, "roi_fcs": 1}


def by_onnxruntime(file, images, sizes, batch=BATCH):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    found = [
        session.run(names, {"images": images[i : i + batch], "sizes": sizes[i : i + batch]})
        for i in range(0, len(images), batch)
    ]
    return {name: np.concatenate(parts) for name, *parts in zip(names, *found, strict=True)}


@needed
@pytest.mark.parametrize(
    ("kind", "own", "batch"),
    [
        ("retinanet", {"convention": "mmdet-2.3", "head_norm": "gn"}, BATCH),
        ("faster_rcnn", {"convention": "mmdet"} | DROPPED, BATCH),
        ("faster_rcnn", {"convention": "torchvision"} | VERSION_2, 1),
    ],
    ids=[
        "retinanet with group norms",
        "faster_rcnn of mmdetection, a class dropped",
        "faster_rcnn of torchvision, v2",
    ],
)
def test_onnxruntime_finds_what_we_find(kind, own, batch, tmp_path, capfd):
    weights, out = tmp_path / "student.safetensors", tmp_path / "student.onnx"
    write_detector(weights, kind, **own)
    call = ["export", f"--weights={weights}", "--to=onnx", f"--batch={batch}", str(out)]
    capfd.readouterr()
    assert main(call) == 0
    printed = capfd.readouterr()
    images_of_a_call = f"{batch} image{'s' * (batch > 1)}"
    assert f"for {images_of_a_call} on 64x96 pixels, on onnx, written to" in printed.out
    assert len(printed.out.splitlines()) == 1
    assert printed.err == ""
    images, sizes = draw_images(IMAGES)
    found = by_onnxruntime(out, images, sizes, batch)
    assert capfd.readouterr().err == ""  # the runtime has nothing to warn of
    wanted = ours(weights, images, sizes)
    assert_same(found, wanted)
    assert set(wanted["labels"][wanted["valid"]]) == {0, 1}
    about = json.loads((tmp_path / "student.onnx.json").read_text())
    assert about["platforms"] == ["onnx"]
    assert about["inputs"]["images"]["shape"] == [batch, 64, 96, 3]


@pytest.fixture
def bfloat16_run(tmp_path):
    """A file of ours, and its weights as those of a run that computes in bfloat16."""
    file = tmp_path / "student.safetensors"
    write_detector(file, "retinanet")
    return file, dataclasses.replace(load(file), config=tiny.config(precision="bfloat16"))


def test_a_run_is_read_in_another_precision(bfloat16_run):
    _, run = bfloat16_run
    for asked, dtype in ((None, jnp.bfloat16), ("float32", jnp.float32)):
        found = read(run, dtype=asked)
        assert found.pixels.dtype == found.detector.dtype == jnp.dtype(dtype)


@needed
def test_of_a_run_in_bfloat16_onnxruntime_computes_in_float32(bfloat16_run, tmp_path, monkeypatch):
    file, run = bfloat16_run
    monkeypatch.setattr("drkd_jax.cli.detector.load", lambda *_, **__: run)
    out = tmp_path / "student.onnx"
    assert main(["export", f"--workdir={tmp_path}", "--to=onnx", f"--batch={BATCH}", str(out)]) == 0
    images, sizes = draw_images(IMAGES)
    assert_same(by_onnxruntime(out, images, sizes), ours(file, images, sizes))


@needed
def test_without_nms_every_region_comes_out(tmp_path):
    weights, out = tmp_path / "teacher.safetensors", tmp_path / "teacher.onnx"
    write_detector(weights, "cascade_rcnn", **DROPPED)
    asked = ["--no-nms", f"--batch={BATCH}", "--pixels=float32"]
    assert main(["export", f"--weights={weights}", "--to=onnx", *asked, str(out)]) == 0
    images, sizes = draw_images(IMAGES)
    images = images.astype(np.float32)
    found = by_onnxruntime(out, images, sizes)
    found_in_file = read(load(weights))
    run, arrays = program(found_in_file.detector, found_in_file.pixels, suppress=False)
    wanted = jax.device_get(jax.jit(run)(arrays, images, sizes))
    rows = wanted["valid"]
    assert 2 * IMAGES < rows.sum() < rows.size  # rows that only fill up, too
    np.testing.assert_array_equal(found["valid"], rows)
    assert found["boxes"].shape == (IMAGES, 40, 1, 4)  # one box for all classes
    for name, tolerance in (("scores", SCORE), ("boxes", PIXEL)):
        np.testing.assert_allclose(found[name][rows], wanted[name][rows], rtol=0, atol=tolerance)
    np.testing.assert_array_equal(found["scores"][~rows], 0)


@needed
def test_what_the_converter_does_not_know_is_one_line():
    inner = jax.jit(lambda b, s: suppress(b, s, s > 0, None, 0.5))  # is cut at no inner call
    traced = jax.make_jaxpr(inner)(np.zeros((5, 4), np.float32), np.zeros(5, np.float32))
    with pytest.raises(UserError, match=r"does not convert this detector \(.*suppress.*stablehlo"):
        convert(*pieces(traced))


def test_without_the_packages_the_extra_is_named(tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "drkd_jax.export.onnx_program.find_spec",
        lambda name: None if name == "jax2onnx" else find(name),
    )
    call = ["export", "--workdir=none", "--to=onnx", str(tmp_path / "x.onnx")]
    assert main(call) == 2
    said = capsys.readouterr().err
    assert "--to=onnx needs jax2onnx: pip install" in said
    assert "[onnx]" in said
    assert len(said.splitlines()) == 1
