"""Invariants for any boxes, counts and padding; few shapes, since each is compiled."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies
from hypothesis import settings as hypothesis_settings
from hypothesis.extra.numpy import arrays

from drkd_jax.types import Features, Targets
from tests.distill.common import CANVAS, Runner, pyramid, settings

G = 5  # padded boxes of an image
few = hypothesis_settings(max_examples=25, deadline=None)
numbers = strategies.floats(-20, 120, width=32)
boxes = arrays(np.float32, (2, G, 4), elements=numbers)
validity = arrays(np.bool_, (2, G))
image_sizes = strategies.tuples(
    strategies.tuples(strategies.integers(1, CANVAS[0]), strategies.integers(1, CANVAS[1])),
    strategies.tuples(strategies.integers(1, CANVAS[0]), strategies.integers(1, CANVAS[1])),
)


@functools.cache
def runner(form: str, strides: tuple[int, ...]) -> tuple[Runner, Features, Features]:
    sides = pyramid(0, 6, strides), pyramid(1, 10, strides)
    values = settings(form, teacher_modules="trained")
    values["instance_relation"]["filter"] = "learned"
    return Runner(values, *sides), *sides


def make_targets(boxes: np.ndarray, valid: np.ndarray, sizes=((48, 64), (48, 64))) -> Targets:
    return Targets(
        jnp.asarray(sizes),
        jnp.asarray(boxes),
        jnp.zeros((2, G), jnp.int32),
        jnp.asarray(valid),
        jnp.ones(2, bool),
    )


@pytest.mark.parametrize(("form", "strides"), [("paper", (4, 16)), ("official", (8,))])
@few
@given(boxes, validity, image_sizes)
def test_always_finite(form, strides, boxes, valid, sizes):
    run, student, teacher = runner(form, strides)
    found, gradients = run.differentiate(
        run.params, run.rest, student, teacher, make_targets(boxes, valid, sizes)
    )
    for leaf in jax.tree.leaves((found, gradients)):
        assert np.isfinite(np.asarray(leaf)).all()
    if not valid.any():
        losses = found[1][0].losses
        assert float(losses["instance_relation"]) == float(losses["instance_feature"]) == 0


@pytest.mark.parametrize("form", ["paper", "official"])
@few
@given(boxes, validity, strategies.permutations(range(G)))
def test_the_order_of_boxes_does_not_matter(form, boxes, valid, order):
    run, student, teacher = runner(form, (8,))
    order = list(order)
    expected = run.losses(student, teacher, make_targets(boxes, valid))
    found = run.losses(student, teacher, make_targets(boxes[:, order], valid[:, order]))
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


@few
@given(boxes, validity, arrays(np.float32, (2, G, 4), elements=numbers))
def test_rows_of_padding_do_not_matter(boxes, valid, garbage):
    run, student, teacher = runner("paper", (8,))
    expected = run.losses(student, teacher, make_targets(boxes, valid))
    other = np.where(valid[..., None], boxes, garbage)
    assert run.losses(student, teacher, make_targets(other, valid)) == expected


@few
@given(boxes, validity, image_sizes, strategies.floats(-100, 100, width=32))
def test_padded_pixels_do_not_matter_in_the_default_form(boxes, valid, sizes, value):
    run, student, teacher = runner("paper", (8,))
    given_targets = make_targets(boxes, valid, sizes)
    expected = run.losses(student, teacher, given_targets)

    def padded(features: Features) -> Features:
        (x,) = features.maps
        rows = np.arange(x.shape[1])[None] * 8 < np.asarray(sizes)[:, :1]
        columns = np.arange(x.shape[2])[None] * 8 < np.asarray(sizes)[:, 1:]
        inside = rows[:, :, None] & columns[:, None, :]
        return Features((jnp.where(inside[..., None], x, value),), features.spec)

    found = run.losses(padded(student), padded(teacher), given_targets)
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-7)
