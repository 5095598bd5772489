"""Invariants of static shapes, such as padding, on both detectors, narrow."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import margins
from tests.models import small


class Case:
    """One detector, with losses and gradients of a padded batch."""

    def __init__(self, name):
        self.name = name
        self.graph, self.state = nnx.split(small.build(name))
        self.run = small.jitted(self.graph)
        self.batch = small.batch(filling=1, rows=7)
        self.terms, self.gradients = self.run(self.state, *self.batch)


@pytest.fixture(scope="module", params=small.DETECTORS)
def case(request):
    return Case(request.param)


def largest(tree):
    return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


def test_every_part_learns(case):
    assert all(np.isfinite(value) and value > 1e-4 for value in case.terms.values())
    assert np.isfinite(largest(case.gradients))
    dead = {
        path[:2]
        for path, leaf in nnx.to_flat_state(case.gradients)
        if float(jnp.abs(leaf[...]).max()) == 0.0
    }
    # The few sampled anchors and regions may leave out a coarse level.
    assert dead <= {("neck", "outputs")}


def test_filling_images_and_padding_rows_change_nothing(case):
    terms = jax.jit(partial(small.losses, case.graph))(case.state, *small.batch())
    assert {name: float(v) for name, v in terms.items()} == pytest.approx(case.terms, rel=1e-5)


def test_what_stands_in_padding_rows_does_not_matter(case):
    images, targets, keys = case.batch
    boxes = np.where(targets.valid[..., None], targets.boxes, [5.0, 5.0, 30.0, 30.0])
    labels = np.where(targets.valid, targets.labels, 2)
    garbage = targets._replace(boxes=boxes.astype(np.float32), labels=labels.astype(np.int32))
    terms, _ = case.run(case.state, images, garbage, keys)
    assert terms == case.terms


def test_no_box_at_all_is_finite(case):
    images, targets, keys = case.batch
    empty = targets._replace(valid=np.zeros_like(targets.valid))
    terms, gradients = case.run(case.state, images, empty, keys)
    assert all(np.isfinite(value) for value in terms.values())
    assert all(value == 0.0 for name, value in terms.items() if "box" in name)
    assert all(value > 0.0 for name, value in terms.items() if "cls" in name)
    assert np.isfinite(largest(gradients))


def test_no_valid_image_is_finite(case):
    images, targets, keys = case.batch
    nobody = targets._replace(
        valid=np.zeros_like(targets.valid),
        image_valid=np.zeros_like(targets.image_valid),
        sizes=np.zeros_like(targets.sizes),
    )
    terms, gradients = case.run(case.state, images, nobody, keys)
    assert set(terms.values()) == {0.0}
    assert largest(gradients) == 0.0


def test_jit_equals_eager(case):
    images, targets, keys = case.batch
    detector = nnx.merge(case.graph, case.state, copy=True)
    if case.name == "retinanet":  # both have the same backbone; once is slow enough
        features = detector.features(images)
    else:
        features = jax.jit(lambda state: nnx.merge(case.graph, state, copy=True).features(images))(
            case.state
        )
    with margins.clear():  # no choice in the tests of this case depends on rounding
        eager = detector.losses(features, targets, keys)
    assert {name: float(v) for name, v in eager.items()} == pytest.approx(case.terms, rel=1e-5)


def test_draws_follow_the_image_not_its_place(case):
    images, targets, keys = case.batch
    swapped = jax.tree.map(lambda x: x[::-1], (images, targets, keys))
    terms, _ = case.run(case.state, *swapped)
    assert terms == pytest.approx(case.terms, rel=1e-5)


@pytest.mark.parametrize("name", small.DETECTORS)
def test_bfloat16_runs_near_float32(name):
    narrow, wide = (small.build(name, dtype) for dtype in (jnp.bfloat16, jnp.float32))
    images = small.batch()[0]
    maps = {}
    for detector in (narrow, wide):
        graph, state = nnx.split(detector)
        features = jax.jit(
            lambda state, graph=graph: nnx.merge(graph, state, copy=True).features(images)
        )(state)
        maps[detector.dtype] = features.maps[0]
    low, high = maps[jnp.dtype(jnp.bfloat16)], maps[jnp.dtype(jnp.float32)]
    assert low.dtype == jnp.bfloat16
    error = jnp.linalg.norm(low.astype(jnp.float32) - high) / jnp.linalg.norm(high)
    assert float(error) < 0.05
    terms = jax.eval_shape(lambda *batch: small.losses(*nnx.split(narrow), *batch), *small.batch())
    assert {term.dtype for term in terms.values()} == {jnp.dtype(jnp.float32)}
    assert all(p[...].dtype == jnp.float32 for _, p in nnx.to_flat_state(nnx.state(narrow)))


@pytest.mark.parametrize("name", small.DETECTORS)
def test_predictions_lie_in_their_image_and_fall_in_score(name):
    graph, state = nnx.split(small.build(name))
    images, targets, _ = small.batch(filling=1)

    @jax.jit
    def predict(state, images, sizes):
        detector = nnx.merge(graph, state, copy=True)
        return detector.predict(detector.features(images), sizes)

    found = jax.tree.map(np.asarray, predict(state, images, targets.sizes))
    assert found.boxes.shape == (3, 10, 4)
    assert found.valid[:2].sum() > 4
    assert not found.valid[2].any()
    for b in range(2):
        boxes, scores = found.boxes[b][found.valid[b]], found.scores[b][found.valid[b]]
        h, w = targets.sizes[b]
        assert (boxes >= 0).all()
        assert (boxes <= [w, h, w, h]).all()
        assert (np.diff(scores) <= 0).all()
        assert (found.scores[b][~found.valid[b]] == 0).all()
    assert found.labels.min() >= 0
    assert found.labels.max() < small.NUM_CLASSES
