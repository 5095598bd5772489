"""`export --to=onnx`: onnxruntime finds what our predictor finds."""

import importlib.util
import json

import numpy as np
import pytest

from drkd_jax.__main__ import main
from tests.cli.test_export_program import assert_same, ours, pictures, write_detector

needed = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("jax2onnx", "onnx", "onnxruntime")),
    reason="needs the extra onnx",
)
PICTURES, BATCH = 20, 4


@needed
def test_onnxruntime_finds_what_we_find(tmp_path, capfd):
    import onnxruntime

    weights, out = tmp_path / "student.safetensors", tmp_path / "student.onnx"
    write_detector(weights, "retinanet")
    call = ["export", f"--weights={weights}", "--to=onnx", f"--batch={BATCH}", str(out)]
    capfd.readouterr()
    assert main(call) == 0
    printed = capfd.readouterr()
    assert f"for {BATCH} pictures on 64x96 pixels, on onnx, written to" in printed.out
    assert len(printed.out.splitlines()) == 1
    assert printed.err == ""
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    images, sizes = pictures(PICTURES)
    names = [output.name for output in session.get_outputs()]
    found = [
        session.run(names, {"images": images[i : i + BATCH], "sizes": sizes[i : i + BATCH]})
        for i in range(0, PICTURES, BATCH)
    ]
    found = {name: np.concatenate(parts) for name, *parts in zip(names, *found, strict=True)}
    assert_same(found, ours(weights, images, sizes))
    about = json.loads((tmp_path / "student.onnx.json").read_text())
    assert about["platforms"] == ["onnx"]
    assert about["inputs"]["images"]["shape"] == [BATCH, 64, 96, 3]


@needed
def test_a_two_stage_detector_is_refused(tmp_path, capsys):
    weights = tmp_path / "student.safetensors"
    write_detector(weights, "faster_rcnn")
    call = ["export", f"--weights={weights}", "--to=onnx", str(tmp_path / "x.onnx")]
    assert main(call) == 2
    assert "--to=onnx takes a RetinaNet; --to=stablehlo" in capsys.readouterr().err


def test_without_the_packages_the_extra_is_named(tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "drkd_jax.training.onnx_program.find_spec",
        lambda name: None if name == "jax2onnx" else find(name),
    )
    call = ["export", "--workdir=none", "--to=onnx", str(tmp_path / "x.onnx")]
    assert main(call) == 2
    said = capsys.readouterr().err
    assert "--to=onnx needs jax2onnx: pip install" in said
    assert "[onnx]" in said
    assert len(said.splitlines()) == 1
