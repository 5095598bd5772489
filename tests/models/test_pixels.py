"""Each network normalises the images by its own rule."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drkd_jax.data.pipeline import train_loader
from drkd_jax.errors import UserError
from drkd_jax.models.conventions import CAFFE_PIXELS
from drkd_jax.models.pixels import read_pixels
from drkd_jax.step.train_step import Recipe, loss_terms
from drkd_jax.training.setup import build_run
from tests.training import tiny

DATA = {"mean": (1.0, 2.0, 3.0), "std": (1.0, 1.0, 1.0)}
BGR = {"mean": CAFFE_PIXELS.mean, "std": CAFFE_PIXELS.std, "channels": "bgr"}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"mean": (1.0, 2.0)}, r"data.mean = \(1.0, 2.0\): three numbers"),
        ({"mean": 1.0}, r"data.mean = 1.0: three numbers"),
        ({"std": ("a", "b", "c")}, r"data.std = .*three numbers"),
        ({"mean": (1.0, float("nan"), 2.0)}, r"data.mean = .*three numbers"),
        ({"std": (1.0, float("inf"), 1.0)}, r"data.std = .*three numbers"),
        ({"std": (1.0, 0.0, 1.0)}, r"data.std = .*above 0"),
        ({"channels": "gbr"}, r"data.channels = 'gbr': one of rgb, bgr"),
    ],
)
def test_faults_are_named(changes, told):
    with pytest.raises(UserError, match=told):
        read_pixels({**DATA, **changes}, jnp.float32)


def test_lists_of_a_file_and_tuples_of_a_config_are_the_same():
    lists = {key: [int(item) for item in value] for key, value in DATA.items()}
    assert read_pixels(lists, "float32") == read_pixels(DATA, jnp.float32)


def test_a_teacher_reads_by_its_own_rule_and_the_student_by_the_run_s(monkeypatch):
    config = tiny.config(distilled=True)
    config["teacher"]["data"] = BGR
    run = build_run(config)
    recipe = run.recipe
    assert recipe.pixels == read_pixels(config["data"], jnp.float32)
    assert recipe.teacher_pixels == read_pixels(BGR, jnp.float32)
    assert "; it reads bgr - (103.53, 116.28, 123.675) over (1.0, 1.0, 1.0), " in run.teacher.origin
    loader = train_loader(run.train_source, run.pipeline)
    batch = next(loader)
    loader.close()
    images, _ = recipe.pixels.prepare(batch)
    seen = np.asarray(recipe.for_teacher(batch, images))
    mean, std = (np.array(config["data"][key]) for key in ("mean", "std"))
    h, w = batch.sizes[0]
    colours = np.asarray(images)[0, :h, :w] * std + mean
    np.testing.assert_allclose(seen[0, :h, :w], colours[..., ::-1] - BGR["mean"], atol=1e-4)

    for same in (None, recipe.pixels):
        alike = dataclasses.replace(recipe, teacher_pixels=same)
        assert alike.for_teacher(batch, images) is images

    given = []
    original = Recipe.for_teacher
    monkeypatch.setattr(Recipe, "for_teacher", lambda *args: given.append(args) or original(*args))
    arguments = run.state.params, run.state.model_state, run.teacher_arrays, batch, jnp.int32(0)
    jax.eval_shape(lambda *args: loss_terms(recipe, *args)[0], *arguments)
    assert len(given) == 1


def test_a_teacher_s_data_says_nothing_else():
    config = tiny.config(distilled=True)
    config["teacher"]["data"] = {"shorter": 3}
    with pytest.raises(UserError, match=r"config.teacher.data.shorter: no such key"):
        build_run(config)
