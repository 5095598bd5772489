"""Realistic metrics files: resumed, cut off, with gaps."""

from __future__ import annotations

import json
import re

import cv2
import numpy as np

from drkd_jax.report import curves


def test_a_resumed_and_cut_off_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [
        {"kind": "train", "step": 10, "cls_loss": 1.0},
        {"kind": "train", "step": 20, "cls_loss": 0.9},
        {"kind": "train", "step": 20, "cls_loss": 0.8},  # the run went on from step 10
        {"kind": "eval", "step": 20, "AP": 0.25},
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines) + '\n{"step": 30, "cls_l')
    records = curves.read_metrics(path)
    assert [record["step"] for record in records] == [10, 20]
    steps, losses = curves.series(records, ["cls_loss"])
    np.testing.assert_array_equal(steps, [10, 20])
    np.testing.assert_array_equal(losses, [1.0, 0.8])
    np.testing.assert_array_equal(curves.series(records, ["AP"])[1], [0.25])


def test_no_file_is_no_record(tmp_path):
    assert curves.read_metrics(tmp_path / "metrics.jsonl") == []


def test_series_leaves_out_what_is_missing_or_not_finite():
    records = [
        {"step": 1, "a": 1.0, "b": 2.0},
        {"step": 2, "a": 1.0},
        {"step": 3, "a": None, "b": 1.0},
        {"step": 4, "a": float("nan"), "b": 1.0},
        {"step": 5, "a": 4.0, "b": 1},
    ]
    steps, values = curves.series(records, ["a", "b"])
    np.testing.assert_array_equal(steps, [1, 5])
    np.testing.assert_array_equal(values, [3.0, 5.0])
    assert len(curves.series(records, [])[0]) == 0


def test_curves_figure_has_a_third_panel_for_a_distilled_run(tmp_path):
    plain = [{"step": s, "cls_loss": 1 / s, "box_loss": 0.1} for s in range(1, 30)]
    plain.append({"step": 29, "AP": 0.2})
    distilled = [{**record, "share/pixel_relation": 0.3} for record in plain]
    curves.curves(tmp_path / "two.png", {"plain": plain, "empty": []}, {"empty": 0.3})
    curves.curves(tmp_path / "three.png", {"plain": plain, "distilled": distilled})
    two, three = (cv2.imread(str(tmp_path / f"{n}.png")).shape[1] for n in ("two", "three"))
    assert three > 1.4 * two


def test_a_share_next_to_nothing_is_drawn():
    for value in (1e-13, 3e-7, 0.0, 2e5):
        line = curves.Line("a", 0, np.array([1.0, 2.0]), np.array([value, value]))
        drawn = curves.chart("a share", "share", [line])
        assert drawn is not None
        (path,) = re.findall(r'd="M([^"H]*)" class="line"', drawn)
        heights = [float(point.split()[1]) for point in path.split("L")]
        low, high = (0, 206) if value else (206, 206)
        assert all(low <= height <= high for height in heights)
        assert "nan" not in drawn
