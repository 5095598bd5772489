"""What a run prints about its models and its machine before it starts."""

from types import SimpleNamespace

import jax
import pytest

from drkd_jax.data.config import PipelineConfig
from drkd_jax.data.sources import open_source
from drkd_jax.training import describe, setup


def test_a_model_is_called_by_its_name():
    settings = {"detector": "retinanet", "backbone": {"depth": 101, "groups": 32}}
    assert describe._model(settings, "retinanet on ") == "retinanet on ResNeXt-101-FPN"
    assert describe._model({}, "") == "ResNet-50-FPN"


@pytest.mark.parametrize(("ap", "weak"), [(-1.0, False), (0.0, True), (0.009, True), (0.02, False)])
def test_a_teacher_that_finds_nothing_is_named(ap, weak):
    said = describe.weak_teacher(ap, "coco:a:b")
    assert bool(said) == weak
    if weak:
        assert said.startswith(f"the teacher finds next to nothing on coco:a:b (AP {ap:.4f})")


@pytest.mark.parametrize(
    ("norm", "init", "said"),
    [("folded", "", True), ("folded", "r50.pth", False), ("gn", "", False)],
)
def test_a_pretrained_teacher_of_a_random_student_is_said(norm, init, said):
    assert bool(describe.other_start(norm, init)) == said


@pytest.mark.parametrize(("init", "hinted"), [("", True), ("random", False)])
def test_a_run_says_so_among_its_findings(init, hinted):
    """But not of a teacher that is random itself."""
    norm = SimpleNamespace(backbone=SimpleNamespace(norm="folded"))
    run = SimpleNamespace(
        train_source=open_source("shapes:4:1"),
        val_source=open_source("shapes:4:2"),
        pipeline=PipelineConfig(
            canvases=((128, 128),), batch_size=1, max_boxes=50, shorter=128, longer=128
        ),
        eval=SimpleNamespace(max_detections=100),
        warnings=(),
        categories=(),
        teacher=SimpleNamespace(detector=SimpleNamespace(settings=norm), categories=()),
        config={"teacher": {"init": init}, "student": {"init": ""}},
    )
    lines = []
    describe.findings(run, lines.append)
    said = [line for line in lines if line.startswith("teacher    has batch norms")]
    assert len(said) == hinted


def test_one_set_for_both_is_said_and_no_fault():
    source = open_source("shapes:4:1")
    found = describe.data_findings(source, source, 100)
    told = "the images of config.data.train: its AP says nothing of new ones"
    assert ("val", told, False) in found
    other = describe.data_findings(source, open_source("shapes:4:2"), 100)
    assert all(text != told for _, text, _ in other)


@pytest.mark.parametrize(
    ("sizes", "small"),
    [
        ({"shorter": 64, "longer": 96}, False),
        ({"shorter": 65, "longer": 96}, True),
        ({"shorter": 64, "longer": 97}, True),
        ({"shorter": 64, "longer": 96, "resize": "stretch"}, False),
        ({"shorter": 96, "longer": 96, "resize": "stretch"}, True),
    ],
)
def test_canvases_that_cannot_hold_the_size_that_is_asked_for_are_named(sizes, small):
    pipeline = PipelineConfig(canvases=((64, 96), (96, 64)), batch_size=1, max_boxes=1, **sizes)
    found = describe._too_small(pipeline)
    assert len(found) == small
    if small:
        assert found[0].startswith(
            "config.data.canvases = 64x96, 96x64: too small for data.shorter"
        )


@pytest.mark.parametrize(
    ("version", "slow"),
    [
        ("0.10.1", False),
        ("0.10.2", True),
        ("0.11.0rc1", True),
        ("0.11.0+nv25.10", True),
        ("0.11.1.dev20260101", False),
    ],
)
def test_a_jaxlib_that_is_slow_on_gpus_is_named_whatever_its_build(version, slow, monkeypatch):
    monkeypatch.setattr(jax.lib, "__version__", version)
    assert setup.machine_warnings() == []
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert bool(setup.machine_warnings()) == slow
