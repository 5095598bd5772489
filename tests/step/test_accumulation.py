"""A batch in parts: what is averaged, and that everything else is the same."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from drkd_jax.errors import UserError
from drkd_jax.ops.platform import tracing_for
from drkd_jax.step import schedule
from drkd_jax.step.accumulation import Gradient, accumulate, first_part, split_batch
from drkd_jax.step.settings import TrainSettings
from drkd_jax.step.sharding import data_mesh, put_stacked
from drkd_jax.step.train_step import loss_terms, norm, pmap_step, train_step
from drkd_jax.training.checks import check_parts
from drkd_jax.types import Batch
from tests.step import toy

SETTINGS = TrainSettings(
    batch_size=4, learning_rate=0.1, steps=9, optimizer="adamw", clip_norm=0.1, warmup_steps=0
)


def batch(filled=4):
    """Four images; the last ones only fill up the batch."""
    both = zip(toy.batch(0), toy.batch(1), strict=True)
    whole = Batch(*(np.concatenate(pair) for pair in both))
    valid = np.arange(4) < filled
    return whole._replace(image_valid=valid, index=np.where(valid, np.arange(4), -1))


def made(accumulate):
    tx = schedule.optimiser(SETTINGS, lambda step: 0.1)
    return toy.recipe(tx, accumulate=accumulate)


def stepped(accumulate, given, step=train_step, put=lambda batch: batch, platform="cpu"):
    recipe, parts, teacher = made(accumulate)
    with tracing_for(platform):
        return step(recipe, data_mesh())(toy.state(recipe, parts), teacher, put(given))


def by_hand(given, share):
    """The update by the mean gradient of two separate batches."""
    recipe, parts, teacher = made(1)
    state = toy.state(recipe, parts)

    def loss(params, part):
        return loss_terms(recipe, params, state.model_state, teacher, part, state.step)

    halves = [Batch(*(leaf[k::2] for leaf in given)) for k in range(2)]
    found = [jax.value_and_grad(loss, has_aux=True)(state.params, half) for half in halves]
    mean = jax.tree.map(
        lambda a, b: share * a + (1 - share) * b, *(gradient for _, gradient in found)
    )
    updates, moments = recipe.tx.update(mean, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    total, other = (total for (total, _), _ in found)
    return params, moments, norm(mean), share * total + (1 - share) * other


def close(one, other):
    """Compares two trees up to the rounding of a mean."""
    same = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-8)
    jax.tree.map(same, one, other)


@pytest.mark.parametrize(
    ("filled", "share", "platform"),
    [(4, 1 / 2, "cpu"), (4, 1 / 2, "gpu"), (3, 2 / 3, "gpu"), (1, 1.0, "cpu")],
)
def test_the_update_is_that_of_the_parts_mean_gradient(filled, share, platform):
    given = batch(filled)
    state, values = stepped(2, given, platform=platform)
    params, moments, length, total = by_hand(given, share)
    close(state.params, params)
    close(state.opt_state, moments)  # of AdamW, after clipping: its first update hides the length
    values = values.to_dict()
    assert values["total"] == pytest.approx(float(total), rel=1e-6)
    assert values["gradient_norm"] == pytest.approx(float(length), rel=1e-6)
    assert values["gradient_norm"] > SETTINGS.clip_norm
    assert int(state.step) == 1


def test_pmap_does_the_same():
    alone, values = stepped(2, batch())
    mapped, others = stepped(2, batch(), pmap_step, lambda given: put_stacked(given, data_mesh()))
    close(alone.params, mapped.params)
    close(alone.opt_state, mapped.opt_state)
    assert values.to_dict() == pytest.approx(others.to_dict(), rel=1e-6)


@pytest.mark.parametrize(
    ("number", "platform", "loop"), [(1, "gpu", False), (2, "gpu", True), (2, "cpu", False)]
)
def test_parts_are_a_loop_but_on_a_cpu(number, platform, loop):
    recipe, parts, teacher = made(number)
    with tracing_for(platform):
        lowered = train_step(recipe, data_mesh()).lower(toy.state(recipe, parts), teacher, batch())
    assert ("while" in lowered.as_text()) == loop


def test_a_part_has_every_nth_row():
    rows = split_batch(batch(), 2).index
    np.testing.assert_array_equal(rows, [[0, 2], [1, 3]])
    np.testing.assert_array_equal(first_part(batch(), 2).index, [0, 2])
    np.testing.assert_array_equal(first_part(batch(), 1).index, [0, 1, 2, 3])


def test_parts_that_are_not_alike_are_refused():
    check_parts(dataclasses.replace(SETTINGS, batch_size=8, accumulate=2), 4)
    with pytest.raises(UserError, match=r"accumulate = 3: 8 images on 2 .*size = 6 or 12"):
        check_parts(dataclasses.replace(SETTINGS, batch_size=8, accumulate=3), 2)
    with pytest.raises(UserError, match=r"accumulate = 0: must be 1 or more"):
        dataclasses.replace(SETTINGS, accumulate=0)


def test_numbers_of_a_batch_are_added_up():
    """Boxes are counted over the whole batch, like the loader's counts in the same log line."""
    given = split_batch(batch(3), 2)

    def gradient(state, part):
        boxes = part.image_valid.sum().astype(np.float32)
        terms = {"diag/boxes": boxes, "diag/boxes_left_out": 2 * boxes, "diag/spread": boxes}
        return Gradient(boxes, terms, state, {})

    terms = accumulate(gradient, {}, {}, given).terms
    assert (float(terms["diag/boxes"]), float(terms["diag/boxes_left_out"])) == (3, 6)
    assert float(terms["diag/spread"]) == pytest.approx(5 / 3)  # by the images of each part


def test_a_part_counts_by_its_images_on_every_device():
    def gradient(state, part):
        return Gradient(part.index[0].astype(np.float32), {}, state, {})

    def gather(here):
        np.testing.assert_array_equal(here, [2, 1])
        return jnp.concatenate([here, jnp.array([2, 0])])  # as a second device's stand behind it

    found = accumulate(gradient, {}, {}, split_batch(batch(3), 2), gather)
    assert float(found.total) == pytest.approx((4 * 0 + 1 * 1) / 5)


@pytest.mark.parametrize(("few", "mean"), [((), 0.0), ((0,), 0.6), ((0, 1), 0.8)])
def test_an_entropy_is_of_the_parts_that_have_a_relation(few, mean):
    """A part without an image with enough boxes has an entropy of 0, which is meaningless."""
    given = split_batch(batch(), 2)
    entropy = np.where([0 in few, 1 in few], [0.6, 1.0], 0).astype(np.float32)

    def gradient(state, part):
        own = jnp.asarray(entropy)[part.index[0]]  # the parts begin with images 0 and 1
        return Gradient(own, {"diag/P3/teacher_entropy": own}, state, {})

    terms = accumulate(gradient, {}, {}, given).terms
    assert float(terms["diag/P3/teacher_entropy"]) == pytest.approx(mean, rel=2e-7)


def test_what_is_not_trained_goes_from_part_to_part():
    """Like running statistics: each part updates the values of the part before."""

    def gradient(state, part):
        moved = {"student": {"mean": 0.5 * state["student"]["mean"] + part.sizes[0, 0]}}
        return Gradient(jnp.zeros(()), {}, moved, {"student": jnp.zeros(2)})

    given = batch()._replace(sizes=np.array([[1, 1], [4, 4], [1, 1], [4, 4]], np.int32))
    start = {"student": {"mean": jnp.float32(8)}}
    found = accumulate(gradient, {"student": jnp.zeros(2)}, start, split_batch(given, 2))
    assert float(found.model_state["student"]["mean"]) == 0.5 * (0.5 * 8 + 1) + 4
