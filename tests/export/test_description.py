"""The description beside an exported program, and the canvas that it can have."""

import types

import pytest

from drkd_jax.data.config import PipelineConfig
from drkd_jax.data.sources.records import Category
from drkd_jax.errors import UserError
from drkd_jax.export.program import Form, about_program, check_form
from drkd_jax.models.pixels import Pixels
from drkd_jax.models.settings import TestSettings


def described(form):
    limits = TestSettings(score=0.1, nms=0.6, max_out=30, pre_nms=500)
    pipeline = PipelineConfig(batch_size=1, canvases=((64, 96),), shorter=60, longer=90)
    settings = types.SimpleNamespace(test=limits)
    return about_program(
        form,
        Pixels((1.0, 2.0, 3.0), (4.0, 5.0, 6.0)),
        (Category(7, "nut"), Category(9, "bolt")),
        pipeline,
        settings,
        "x",
        4,
    )


def test_limits_and_sizes_are_those_of_the_detector():
    about = described(Form((64, 96), batch=3))
    assert about["limits"] == {"score": 0.1, "iou": 0.6, "candidates": 500, "detections": 30}
    assert (about["resize_before"]["shorter"], about["resize_before"]["longer"]) == (60, 90)
    assert {name: out["shape"] for name, out in about["outputs"].items()} == {
        "boxes": [3, "N", 4],
        "scores": [3, "N"],
        "labels": [3, "N"],
        "valid": [3, "N"],
    }


def test_a_program_without_suppression_has_every_box():
    about = described(Form((64, 96), suppress=False))
    assert about["classes"] == [{"id": 7, "name": "nut"}, {"id": 9, "name": "bolt"}]
    assert about["outputs"]["boxes"]["shape"] == ["B", "N", "D", 4]
    assert about["outputs"]["scores"]["shape"] == ["B", "N", "K"]
    assert about["inputs"]["sizes"]["shape"] == ["B", 2]


@pytest.mark.parametrize(
    ("canvas", "nearest"), [((60, 96), "64x96"), ((64, 97), "64x128"), ((0, 33), "32x64")]
)
def test_a_canvas_that_is_no_multiple_names_the_next_one(canvas, nearest):
    check_form(Form((64, 96)), 32)
    with pytest.raises(UserError, match=f"multiples of 32; use {nearest}"):
        check_form(Form(canvas), 32)
