"""All recipes build, and run two steps in their tiny form."""

import dataclasses
import importlib
import json

import pytest

from drkd_jax.data.config import PipelineConfig
from drkd_jax.distill.config import distill_config
from drkd_jax.errors import UserError
from drkd_jax.models.build import DETECTORS, fill_settings
from drkd_jax.recipes.common import base
from drkd_jax.recipes.finding import recipe_names
from drkd_jax.step.settings import EvalSettings, TrainSettings, set_keys
from drkd_jax.training.loop import train

RECIPES = recipe_names()
# cli/test_demo.py runs the demo's whole tiny form, its teacher and both students.
RUN_HERE = [name for name in RECIPES if name != "demo"]
PAPER = [name for name in RECIPES if "2x_coco" in name]


def recipe(name, form=None):
    return importlib.import_module(f"configs.{name}").get_config(form)


def test_the_four_recipes_of_the_paper_are_there():
    assert len(PAPER) == 4


@pytest.mark.parametrize("name", ["demo", "folder"])
def test_the_tiny_form_takes_a_detector_as_the_others_do(name):
    detectors = [recipe(name, form).student.detector for form in ("tiny", "tiny:faster_rcnn")]
    assert detectors == ["retinanet", "faster_rcnn"]


@pytest.mark.parametrize("name", RUN_HERE)
def test_two_steps_in_the_tiny_form(name, tmp_path):
    config = recipe(name, "tiny")
    summary = train(config.to_dict(), tmp_path)
    assert summary["steps"] == 2
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line for line in lines if line["kind"] == "train"]
    assert len(losses) == 2
    assert all(line["total"] > 0 for line in losses)
    terms = distill_config(config.to_dict()["distill"]).terms if config.distill else {}
    assert {f"share/{term}" for term in terms} <= set(losses[0])
    assert all(losses[0][f"share/{term}"] > 0 for term in terms)


@pytest.mark.parametrize("name", PAPER)
def test_paper_recipes_hold_the_paper_s_schedule(name):
    config = recipe(name)
    rate = 0.02 if name.startswith("faster_rcnn") else 0.01
    assert config.train.learning_rate == rate
    assert (config.train.epochs, config.train.decay_at) == (24.0, (16.0, 22.0))
    assert (config.train.batch_size, config.train.warmup_steps) == (16, 500)
    assert config.student.backbone.depth == 50
    assert (config.data.shorter, config.data.longer) == (800, 1333)
    doc = importlib.import_module(f"configs.{name}").__doc__
    assert "not\nreproduced here" in doc or "not reproduced here" in doc


@pytest.mark.parametrize("name", PAPER)
def test_without_its_weights_a_recipe_names_them(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = recipe(name)
    config.data.train, config.data.val = "shapes:4", "shapes:4:1"
    with pytest.raises(UserError, match=r"weights/resnet50-0676ba61\.pth") as failure:
        train(config.to_dict(), tmp_path / "run")
    if name.endswith("drkd"):
        assert config.teacher.checkpoint in str(failure.value)


@pytest.mark.parametrize("name", ["demo", "folder"])
@pytest.mark.parametrize("detector", ["retinanet", "faster_rcnn"])
def test_student_and_distilled_student_are_the_same(name, detector):
    plain, distilled = (
        recipe(name, f"{role}:{detector}").to_dict() for role in ("student", "drkd")
    )
    for part in ("seed", "data", "student", "train", "eval"):
        assert plain[part] == distilled[part], part
    assert plain["distill"] is None
    assert distilled["distill"] is not None


@pytest.mark.parametrize("name", RECIPES)
def test_every_setting_of_a_detector_has_a_place_in_every_recipe(name):
    config = recipe(name)
    places = [config.student] + ([config.teacher] if config.teacher is not None else [])
    for _, settings in DETECTORS.values():
        for field in dataclasses.fields(settings):
            value = getattr(settings, field.name)
            for place in places:
                assert field.name in place
                if dataclasses.is_dataclass(value):
                    inner = {one.name for one in dataclasses.fields(value)}
                    assert inner <= set(place[field.name])


def test_an_empty_place_is_the_detector_s_default_and_one_that_is_set_counts():
    config = recipe("folder", "student:retinanet")
    own = set_keys(config.student.to_dict())
    assert own["backbone"] == {"depth": 18, "norm": "gn", "frozen_stages": 0, "width": 8}
    assert "min_level" not in own
    assert "test" not in own
    del own["init"]
    assert fill_settings(own)[1].min_level == 3
    config.student.min_level, config.student.test.score = 2, 0.1
    changed = set_keys(config.student.to_dict())
    del changed["init"]
    filled = fill_settings(changed)[1]
    assert (filled.min_level, filled.test.score, filled.test.nms) == (2, 0.1, 0.5)
    config.student.fc = 7  # of another detector
    wrong = set_keys(config.student.to_dict())
    del wrong["init"]
    with pytest.raises(UserError, match="unknown setting 'fc'"):
        fill_settings(wrong)


@pytest.mark.parametrize(
    ("part", "settings", "elsewhere", "free"),
    [
        ("train", TrainSettings, set(), {"batch_size", "learning_rate"}),
        ("eval", EvalSettings, set(), set()),
        ("data", PipelineConfig, {"batch_size", "seed"}, {"canvases", "shorter", "longer"}),
    ],
)
def test_a_default_is_the_same_wherever_it_stands(part, settings, elsewhere, free):
    own, fields = base()[part], dataclasses.fields(settings)
    assert {field.name for field in fields} - elsewhere <= set(own)
    for field in fields:
        if field.name not in elsewhere | free:
            # The machine determines an empty value.
            made = field.default_factory is not dataclasses.MISSING
            assert own[field.name] == (None if made else field.default), field.name
