"""Norms and angles of the terms' gradients, against separately computed gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drkd_jax.errors import UserError
from drkd_jax.monitoring.metrics import MetricAverager
from drkd_jax.step.gradients import gradient_report
from drkd_jax.step.settings import train_settings
from drkd_jax.step.sharding import data_mesh
from drkd_jax.step.train_step import loss_terms
from drkd_jax.step.train_step import norm as length
from tests.step import toy


def total_gradient(made, state, teacher, weights):
    """The student's gradient of the total with other weights, always with the detection losses."""

    def loss(student):
        params = {**state.params, "student": student}
        given = teacher, toy.batch(), state.step
        _, (values, _) = loss_terms(made, params, state.model_state, *given)
        terms = sum(weight * values[name] for name, weight in weights.items())
        return values["cls_loss"] + values["box_loss"] + values["distill_factor"] * terms

    return jax.jit(jax.grad(loss))(state.params["student"])


def flat(tree, part):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree[part])]).astype(float)


def test_norms_and_cosines_are_those_of_the_gradients_themselves():
    made, parts, teacher = toy.recipe(distill_factor=lambda step: jnp.asarray(0.5))
    state = toy.state(made, parts)
    found = gradient_report(made, data_mesh())(state, teacher, toy.batch()).to_dict()
    alone = total_gradient(made, state, teacher, {"near": 0.0, "far": 0.0})
    near = total_gradient(made, state, teacher, {"near": 0.5, "far": 0.0})
    far = total_gradient(made, state, teacher, {"near": 0.0, "far": 0.25})
    for part, key in (("backbone", "backbone"), ("pyramid", "neck")):
        detection = flat(alone, key)
        terms = {"near": flat(near, key) - detection, "far": flat(far, key) - detection}
        np.testing.assert_allclose(
            found[f"gradient/detection/{part}"], np.linalg.norm(detection), rtol=1e-5
        )
        for name, gradient in terms.items():
            np.testing.assert_allclose(
                found[f"gradient/{name}/{part}"], np.linalg.norm(gradient), rtol=1e-5
            )
        whole = terms["near"] + terms["far"]
        cosine = detection @ whole / np.linalg.norm(detection) / np.linalg.norm(whole)
        np.testing.assert_allclose(found[f"gradient/cosine/{part}"], cosine, atol=1e-5)
    assert len(found) == 2 * 4


def test_while_the_distiller_adapts_the_terms_have_no_gradient():
    made, parts, teacher = toy.recipe(adaptation_steps=1)
    state = toy.state(made, parts)
    found = gradient_report(made, data_mesh())(state, teacher, toy.batch()).to_dict()
    for part in ("backbone", "pyramid"):
        assert found[f"gradient/detection/{part}"] > 0
        assert found[f"gradient/near/{part}"] == found[f"gradient/cosine/{part}"] == 0


def test_what_was_found_is_in_the_next_line_and_not_in_the_one_after():
    window = MetricAverager({}, 4)
    step = {"total": 2.0, "learning_rate": 0.1, "finite": 1.0}
    for norm in (1.0, 2.0):
        window.values(dict(step))
        window.gradients({"gradient/detection/backbone": norm})
        window.took(0.1)
    assert window.close(steps_left=1)[0]["gradient/detection/backbone"] == 1.5
    window.values(dict(step))
    window.took(0.1)
    assert "gradient/detection/backbone" not in window.close(steps_left=0)[0]


def test_pmap_is_refused():
    with pytest.raises(UserError, match=r"log_gradients needs config\.train\.parallel = 'jit'"):
        train_settings(
            {"batch_size": 2, "steps": 2, "learning_rate": 0.1, "log_gradients": 1}
            | {"parallel": "pmap"}
        )


def test_the_length_of_a_tree_is_that_of_its_numbers():
    rng = np.random.default_rng(0)
    shapes = {"small": (3, 5), "one": (), "large": (200, 100), "another": (2**14 + 1,)}
    tree = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    for kept in (tree, {"large": tree["large"]}, {"small": tree["small"]}):
        own = np.concatenate([leaf.ravel().astype(np.float64) for leaf in kept.values()])
        np.testing.assert_allclose(length(kept), np.linalg.norm(own), rtol=1e-6)
    assert float(length({})) == 0.0
