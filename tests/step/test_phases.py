"""What changes over a run: weights of the distillation, its adaptation, the average."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from drkd_jax.distill import DistillConfig
from drkd_jax.errors import UserError
from drkd_jax.fault_tolerance import checkpoint
from drkd_jax.models.arrays import flatten
from drkd_jax.monitoring.metrics import MetricAverager
from drkd_jax.step.schedule import check_distillation, distill_factor
from drkd_jax.step.sharding import data_mesh, put_everywhere, replicated
from drkd_jax.step.train_step import loss_terms, train_step
from drkd_jax.weights.ours import read_checkpoint
from tests.step import toy


@pytest.mark.parametrize(
    ("settings", "steps", "wanted"),
    [
        ({"warmup_steps": 4}, (0, 1, 4, 99), (0, 0.25, 1, 1)),
        ({"warmup_steps": 4, "adaptation_steps": 3}, (0, 2, 3, 4, 7), (1, 1, 0, 0.25, 1)),
        ({"schedule": "linear", "fall_from": 0.5}, (0, 50, 75, 99), (1, 1, 0.5, 0.02)),
        ({"schedule": "cosine", "fall_from": 0.6}, (59, 70, 80), (1, 0.853553, 0.5)),
        ({"schedule": "stop", "fall_from": 0.3}, (0, 29, 30, 99), (1, 1, 0, 0)),
        ({"schedule": "linear", "warmup_steps": 50}, (25,), (0.375,)),
    ],
)
def test_the_weights_follow_their_closed_form(settings, steps, wanted):
    factor = distill_factor(DistillConfig(**settings), 100)
    np.testing.assert_allclose(factor(np.array(steps)), wanted, atol=1e-6)


def test_a_constant_weight_costs_nothing():
    assert distill_factor(DistillConfig(), 100) is None
    assert distill_factor(DistillConfig(adaptation_steps=5), 100) is None


def test_phases_without_a_lesson_are_refused_and_short_ones_named():
    with pytest.raises(UserError, match="none teaches the student"):
        check_distillation(DistillConfig(adaptation_steps=100), 100)
    with pytest.raises(UserError, match="none teaches the student"):
        check_distillation(DistillConfig(adaptation_steps=30, schedule="stop", fall_from=0.3), 100)
    (warning,) = check_distillation(DistillConfig(warmup_steps=200), 100)
    assert "reach 49% of" in warning
    assert check_distillation(DistillConfig(warmup_steps=20, adaptation_steps=9), 100) == []
    falling = {"schedule": "linear", "warmup_steps": 30, "adaptation_steps": 10}
    (warning,) = check_distillation(DistillConfig(**falling, fall_from=0.2), 100)
    assert "take 40 steps of 100" in warning
    assert "reach 75% of" in warning  # a quarter of the fall is done when the warm-up ends
    assert check_distillation(DistillConfig(**falling, fall_from=0.4), 100) == []
    off = dict.fromkeys(("pixel_relation", "instance_relation", "instance_feature"))
    (warning,) = check_distillation(DistillConfig(**off), 100)
    assert "no term has a weight" in warning
    for wrong in ({"schedule": "up"}, {"schedule": "stop"}, {"fall_from": 1.0}):
        with pytest.raises(UserError, match=rf"distill\.{next(iter(wrong))} = "):
            DistillConfig(**wrong)


def gradient(made, parts, teacher, step):
    state = toy.state(made, parts)

    def loss(params, step):
        return loss_terms(made, params, state.model_state, teacher, toy.batch(), step)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(state.params, jnp.int32(step))


def test_while_it_adapts_the_student_has_the_gradient_of_detection_alone():
    made, parts, teacher = toy.recipe(adaptation_steps=3)
    (_, (values, _)), plain = gradient(*toy.recipe(adaptation_steps=3)[:2], teacher, 2)
    other, _, _ = toy.recipe()
    silent, _, _ = toy.recipe(distill_factor=lambda step: jnp.zeros(()))
    alone = gradient(silent, parts, teacher, 2)[1]
    for mine, theirs in zip(
        *map(jax.tree.leaves, (plain["student"], alone["student"])), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)
    assert float(values["near"]) > 0
    # The distiller learns as it does later on, and from step 3 on the student too.
    later = gradient(made, parts, teacher, 3)[1]
    always = gradient(other, parts, teacher, 3)[1]
    for name in ("student", "distiller"):
        for mine, theirs in zip(*map(jax.tree.leaves, (later[name], always[name])), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-8)
    own = jax.tree.leaves(plain["distiller"])
    for mine, theirs in zip(own, jax.tree.leaves(always["distiller"]), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-8)
    moved = (jax.tree.leaves(later["student"]), jax.tree.leaves(alone["student"]))
    assert any(np.any(mine != theirs) for mine, theirs in zip(*moved, strict=True))


def test_the_factor_multiplies_every_weighted_term_and_is_reported():
    made, parts, teacher = toy.recipe(distill_factor=lambda step: jnp.where(step < 1, 0.0, 0.5))
    for step, factor in ((0, 0.0), (1, 0.5)):
        (total, (values, _)), _ = gradient(made, parts, teacher, step)
        detection = values["cls_loss"] + values["box_loss"]
        wanted = detection + factor * (0.5 * values["near"] + 0.25 * values["far"])
        assert values["distill_factor"] == factor
        np.testing.assert_allclose(total, wanted, rtol=1e-6)


def test_shares_are_of_the_weights_of_their_steps():
    window = MetricAverager({"near": 2.0}, 4)
    for factor, near, total in ((0.0, 5.0, 1.0), (0.5, 3.0, 4.0)):
        step = {"total": total, "near": near, "distill_factor": factor}
        window.values({**step, "learning_rate": 0.1, "finite": 1.0})
        window.took(0.1)
    values, _ = window.close(steps_left=0)
    assert values["distill/near"] == 4.0
    assert values["weight/near"] == 0.5
    assert values["share/near"] == pytest.approx(1.5 / 2.5)
    assert values["distill_factor"] == 0.25


@pytest.fixture(scope="module")
def averaging():
    made, parts, teacher = toy.recipe(optax.sgd(0.1, 0.9), ema=0.5)
    mesh = data_mesh()
    start = toy.state(made, parts, average=True)
    return train_step(made, mesh), lambda: put_everywhere(start, mesh), teacher


def test_the_average_is_the_one_written_out(averaging):
    step, start, teacher = averaging
    state = start()
    average = {name: np.array(leaf) for name, leaf in flatten(state.params["student"]).items()}
    for done in range(8):
        state, _ = step(state, teacher, toy.batch(done))
        kept = min(0.5, (1 + done) / (10 + done))
        for name, leaf in flatten(state.params["student"]).items():
            average[name] = kept * average[name] + (1 - kept) * np.array(leaf)
    for name, leaf in flatten(state.average).items():
        np.testing.assert_allclose(leaf, average[name], rtol=1e-6, atol=1e-7)
        assert np.any(np.array(leaf) != np.array(flatten(state.params["student"])[name]))


def test_the_average_is_kept_and_resumed_bit_for_bit(averaging, tmp_path):
    step, start, teacher = averaging
    state = start()
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=2)
    for done in range(6):
        state, _ = step(state, teacher, toy.batch(done))
        if done == 2:
            checkpoints.save(state, {"config": {}, "categories": [], "data": {}})
            checkpoints.save_best(state, {"numbers": {"AP": 0.5}})
            kept = {name: np.array(leaf) for name, leaf in flatten(state.average).items()}
    for which in ("best", "last"):  # what is exported and what teaches is the average
        arrays, _, _ = read_checkpoint(tmp_path, which)
        assert arrays.keys() == kept.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, kept[name])
    mesh = data_mesh()
    again = put_everywhere(checkpoints.restore(start(), replicated(mesh)), mesh)
    for done in range(3, 6):
        again, _ = step(again, teacher, toy.batch(done))
    checkpoints.close()
    assert jax.tree.structure(again) == jax.tree.structure(state)
    for mine, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_without_an_average_the_state_has_no_array_for_it():
    made, parts, _ = toy.recipe()
    assert jax.tree.leaves(toy.state(made, parts).average) == []
