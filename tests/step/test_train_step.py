"""What one step says of itself, and by what it draws."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from drkd_jax.step.sharding import data_mesh
from drkd_jax.step.train_step import picture_keys, train_step
from tests.step import toy


def root_of_nothing(self, features, targets, keys):
    """0, with a gradient that is no number."""
    return {"cls_loss": jnp.sqrt(0 * self.head(features.maps[0]).sum())}


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
    ],
)
def test_a_step_is_finite_where_loss_gradient_and_new_state_are(fault, finite, monkeypatch):
    if fault == "gradient":
        monkeypatch.setattr(toy.Detector, "losses", root_of_nothing)
    tx = {"gradient": optax.set_to_zero(), "update": optax.sgd(np.inf)}.get(fault)
    values = stepped(tx)
    names = ("total", "gradient_norm", "parameter_norm")
    assert {name for name in names if np.isfinite(values[name])} == finite
    assert values["finite"] == (not fault)


def test_a_picture_draws_by_seed_step_and_its_place_in_the_source():
    def keys(seed, step, *index):
        found = picture_keys(seed, jnp.int32(step), jnp.asarray(index, jnp.int32))
        return [tuple(row) for row in np.asarray(jax.random.key_data(found)).tolist()]

    five, three = keys(0, 7, 5, 3)
    assert keys(0, 7, 3, 1, 5)[::2] == [three, five]  # wherever it stands in a batch
    assert len({five, three, *keys(0, 8, 5), *keys(1, 7, 5)}) == 4
