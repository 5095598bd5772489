"""What one step reports, and its random draws."""

from __future__ import annotations

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh

from drkd_jax.step import train_step as step
from drkd_jax.step.sharding import data_mesh
from drkd_jax.step.train_step import image_keys, train_step
from tests.step import toy


def root_of_nothing(self, features, targets, keys):
    """0, with a gradient that is NaN."""
    return {"cls_loss": jnp.sqrt(0 * self.head(features.maps[0]).sum())}


def with_statistics(value, make=toy.Detector.__init__):
    """A detector's `__init__` that adds a running mean."""

    def made(self, key):
        make(self, key)
        self.mean = nnx.BatchStat(jnp.full(2, value))

    return made


def stepped(tx):
    recipe, parts, teacher = toy.recipe(tx)
    _, values = train_step(recipe, data_mesh())(toy.state(recipe, parts), teacher, toy.batch())
    return values.to_dict()


@pytest.mark.parametrize(
    ("fault", "finite"),
    [
        ("", {"total", "gradient_norm", "parameter_norm"}),
        ("gradient", {"total", "parameter_norm"}),
        ("update", {"total", "gradient_norm"}),
        ("statistics", {"total", "gradient_norm"}),
    ],
)
def test_a_step_is_finite_where_loss_gradient_and_new_state_are(fault, finite, monkeypatch):
    if fault == "gradient":
        monkeypatch.setattr(toy.Detector, "losses", root_of_nothing)
    if fault == "statistics":
        monkeypatch.setattr(toy.Detector, "__init__", with_statistics(np.nan))
    tx = {"gradient": optax.set_to_zero(), "update": optax.sgd(np.inf)}.get(fault)
    values = stepped(tx)
    names = ("total", "gradient_norm", "parameter_norm")
    assert {name for name in names if np.isfinite(values[name])} == finite
    assert values["finite"] == (not fault)


def test_an_image_draws_by_seed_step_and_its_place_in_the_source():
    def keys(seed, step, *index):
        found = image_keys(seed, jnp.int32(step), jnp.asarray(index, jnp.int32))
        return [tuple(row) for row in np.asarray(jax.random.key_data(found)).tolist()]

    five, three = keys(0, 7, 5, 3)
    assert keys(0, 7, 3, 1, 5)[::2] == [three, five]  # wherever it stands in a batch
    assert len({five, three, *keys(0, 8, 5), *keys(1, 7, 5)}) == 4


@pytest.mark.parametrize("statistics", [False, True])
def test_statistics_are_of_the_student_alone_and_of_all_devices_images(monkeypatch, statistics):
    features = toy.Detector.features
    valid, by_device = [], []

    def seen(self, images, image_valid=None):
        valid.append(image_valid)
        return features(self, images)

    def each(mesh, function):
        by_device.append(function.func.__name__)
        return function

    if statistics:
        monkeypatch.setattr(toy.Detector, "__init__", with_statistics(0.0))
    monkeypatch.setattr(toy.Detector, "features", seen)
    monkeypatch.setattr(step, "each_device", each)
    recipe, parts, teacher = toy.recipe()
    state = toy.state(recipe, parts)
    given = recipe, state.params, state.model_state, teacher, toy.batch(), state.step
    step.loss_terms(*given, mesh=mock.Mock(Mesh, size=2))
    student, its_teacher = valid
    np.testing.assert_array_equal(student, [True, True])
    assert its_teacher is None
    assert by_device == ["_student_features"] * (not statistics) + ["_teacher_features"]
