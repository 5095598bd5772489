"""Properties of the default form: similarity, a start at the identity, no teacher's scale."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from drkd_jax.distill import distill_config
from drkd_jax.distill.config import InstanceRelationConfig, PixelRelationConfig
from drkd_jax.distill.graph_unit import GraphUnit, Moments, moved
from drkd_jax.distill.instance_relation import RelationUnit, centred_directions
from drkd_jax.distill.pairing import LevelPair
from drkd_jax.distill.pixel_relation import PixelRelation
from drkd_jax.distill.teacher_side import TeacherScale
from drkd_jax.errors import UserError
from drkd_jax.frozen import Frozen
from drkd_jax.types import Features, FeatureSpec
from tests.distill.common import Runner, call, make, pyramid, settings, targets

STUDENT, TEACHER = pyramid(0, 6), pyramid(1, 10)
BOXES = np.random.default_rng(3).standard_normal((1, 5, 12)).astype(np.float32)
BOXES[0, 1] = BOXES[0, 0]
ALL = np.ones((1, 5), bool)


def psi(x=BOXES, valid=ALL, **more) -> np.ndarray:
    unit = RelationUnit(x.shape[-1], InstanceRelationConfig(**more), rngs=nnx.Rngs(0))
    return np.asarray(unit.relation(x, valid))


@pytest.fixture(scope="module")
def paper():
    return Runner(settings("paper"), STUDENT, TEACHER)


@pytest.mark.parametrize("kind", ["cosine", "embedded"])
def test_equal_boxes_look_at_each_other_most_and_at_others_alike(kind):
    found = psi(similarity=kind)
    assert found[0, 0, 1] == found[0, 0].max()
    assert found[0, 1, 0] == found[0, 1].max()
    np.testing.assert_allclose(found[0, 0, 2:], found[0, 1, 2:], rtol=1e-5)


def test_cosine_against_numpy():
    off = BOXES[0].astype(float) - BOXES[0].astype(float).mean(0)
    unit = off / np.linalg.norm(off, axis=1, keepdims=True)
    weights = np.exp(unit @ unit.T / 0.3) * (1 - np.eye(5))
    expected = weights / weights.sum(1, keepdims=True)
    np.testing.assert_allclose(psi()[0], expected, rtol=2e-5, atol=1e-7)


def test_a_box_is_in_its_own_row_only_where_asked():
    np.testing.assert_array_equal(np.diagonal(psi()[0]), 0)
    assert (np.diagonal(psi(diagonal=True)[0]) > 0.2).all()


def test_likeness_does_not_hang_on_the_features_scale_or_on_padded_rows():
    np.testing.assert_allclose(psi(10 * BOXES), psi(), rtol=1e-4)
    padded = np.concatenate([BOXES, np.full((1, 2, 12), 99, np.float32)], 1)
    valid = np.arange(7)[None] < 5
    found = psi(padded, valid)
    np.testing.assert_allclose(found[:, :5, :5], psi(), rtol=1e-5)
    assert (found[:, 5:] == 0).all()
    assert (found[:, :, 5:] == 0).all()


def test_boxes_without_a_direction_have_finite_gradients():
    same = np.ones((1, 3, 4), np.float32)
    gradient = jax.grad(lambda x: (centred_directions(x, np.ones((1, 3), bool)) ** 2).sum())(same)
    assert np.isfinite(np.asarray(gradient)).all()


def test_the_filter_of_a_similarity_has_mean_1_in_a_row():
    """At its initial scale it raises some pairs and lowers others; it does not flatten all."""
    config = InstanceRelationConfig(filter="learned", filter_rank=4)
    unit = RelationUnit(12, config, rngs=nnx.Rngs(0))
    assert unit.filter is not None
    bare = np.asarray(unit.similarity(BOXES, ALL))
    w = 5 * np.asarray(unit.filter(BOXES, ALL))
    np.testing.assert_allclose(w.mean(-1), 1, rtol=1e-5)
    logits = np.where(np.eye(5, dtype=bool), -np.inf, bare * w)
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(np.asarray(unit.relation(BOXES, ALL)), expected, rtol=2e-5)


def test_two_boxes_leave_no_choice_and_no_loss(paper):
    assert paper.losses(STUDENT, TEACHER, targets((2, 2)))["instance_relation"] == 0
    alone = paper.losses(STUDENT, TEACHER, targets((3, 0)))["instance_relation"]
    assert paper.losses(STUDENT, TEACHER, targets((3, 2)))["instance_relation"] == alone > 0


def test_a_weight_follows_what_is_compared():
    """A mean square of values differs from one of correlations."""
    default, values = PixelRelationConfig(), PixelRelationConfig(compare="values")
    assert (default.compare, default.weight, values.weight) == ("correlation", 15.0, 0.5)
    assert PixelRelationConfig(compare="values", weight=3.0).weight == 3.0


def test_the_official_form_knows_no_correlation():
    with pytest.raises(UserError, match=r"compare = 'correlation': the official form"):
        distill_config({"pixel_relation": {"form": "official", "compare": "correlation"}})
    made = distill_config({"pixel_relation": {"form": "official"}})
    assert made.pixel_relation.compare == "values"


def test_the_official_form_knows_no_similarity():
    with pytest.raises(UserError, match="bilinear"):
        InstanceRelationConfig(form="official", similarity="cosine")
    with pytest.raises(UserError, match="temperature"):
        InstanceRelationConfig(temperature=0.0)


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_the_units_branch_starts_at_its_stated_scale(scale):
    unit = GraphUnit(6, 4, normalize=True, scale=scale, rngs=nnx.Rngs(0))
    x = STUDENT.maps[0].reshape(2, -1, 6)
    branch = unit(x, np.ones(x.shape[:2], bool), train=True) - x
    # The variance is of the map's own unit; BN's eps takes a little of a small branch.
    np.testing.assert_allclose(jnp.std(branch, (0, 1)), scale, rtol=0.1)


def test_a_teacher_in_other_units_changes_nothing(paper):
    ten = Features(tuple(10 * x for x in TEACHER.maps), TEACHER.spec)
    expected = paper.losses(STUDENT, TEACHER, targets())
    assert paper.losses(STUDENT, ten, targets()) == pytest.approx(expected, rel=2e-5)
    official = Runner(settings("official"), STUDENT, TEACHER)
    ratio = official.losses(STUDENT, ten, targets())["instance_feature"]
    assert ratio > 5 * official.losses(STUDENT, TEACHER, targets())["instance_feature"]


# Flat channels count less: FLAT, here a ten thousandth of a channel's variance. Measured: 1.4e-4.
@pytest.mark.parametrize(("compare", "error"), [("values", 1e-5), ("correlation", 5e-4)])
def test_an_adaptation_that_says_nothing_has_loss_1(compare, error):
    """Mean squares are in variances of the teacher's level or channel: 1 explains nothing."""
    runner = Runner(settings("paper", compare=compare), STUDENT, TEACHER)
    centred = Features(
        tuple(
            x - x[:, : -(-32 // s), : -(-44 // s)].mean((0, 1, 2))
            for x, s in zip(TEACHER.maps, (8, 16), strict=True)
        ),
        TEACHER.spec,
    )
    silent = jax.tree_util.tree_map_with_path(
        lambda path, x: 0 * x if "adaptation" in jax.tree_util.keystr(path) else x, runner.params
    )
    output, _ = runner.run(silent, runner.rest, STUDENT, centred, targets())
    assert float(output.losses["pixel_relation"]) == pytest.approx(1, rel=error)


MASK = np.ones((2, 6, 7), bool)
MASK[0, 4:] = MASK[1, :, 5:] = False


def pixel_term(arithmetic="plain", width=5):
    config = PixelRelationConfig(nodes=(4,), arithmetic=arithmetic)
    spec = FeatureSpec((width,), (8,), ("lateral",))
    term = PixelRelation(config, (LevelPair(0, 0, 8),), spec, spec, rngs=nnx.Rngs(0))
    term.adaptation[0].kernel[...] = jnp.eye(width)
    return term


@pytest.mark.parametrize("arithmetic", ["plain", "gram"])
def test_correlation_is_twice_one_minus_pearsons_r(arithmetic):
    """Units start as the identity, and f is the identity: so z(t) and z(s) are the maps' own."""
    random = np.random.default_rng(0)
    s, t = (random.standard_normal((2, 6, 7, 5)).astype(np.float32) for _ in range(2))
    t = 3 * t + s + np.float32(2)
    each = [
        [np.corrcoef(s[i][MASK[i]][:, c], t[i][MASK[i]][:, c])[0, 1] for c in range(5)]
        for i in range(2)
    ]
    loss, _ = pixel_term(arithmetic)((s,), (t,), (MASK,))
    expected = 2 * (1 - np.average(np.mean(each, 1), weights=MASK.sum((1, 2))))
    assert float(loss) == pytest.approx(expected, rel=3e-4)  # measured: 7e-5, FLAT's part


@pytest.mark.parametrize("arithmetic", ["plain", "gram"])
def test_correlation_does_not_see_a_channels_scale_and_mean(arithmetic):
    random = np.random.default_rng(0)
    s, t = (random.standard_normal((2, 6, 7, 5)).astype(np.float32) for _ in range(2))
    scale, mean = np.float32([0.5, 1, 2, 3, 4]), np.float32([0, -1, 2, 0.5, 3])
    term = pixel_term(arithmetic)
    loss, other = (float(term((x,), (t,), (MASK,))[0]) for x in (s, scale * s + mean))
    assert other == pytest.approx(loss, rel=3e-4)  # measured: 3.4e-5, FLAT's part
    assert loss > 1


@pytest.mark.parametrize("arithmetic", ["plain", "gram"])
def test_norm_and_variance_are_of_the_teachers_embedding_over_its_map(arithmetic):
    """A unit that adds a constant to each channel changes the norm, but not the variance."""
    t = np.random.default_rng(0).standard_normal((2, 6, 7, 5)).astype(np.float32)
    term, added = pixel_term(arithmetic), np.arange(5, dtype=np.float32)
    term.teacher[0].norm.bias[...] = jnp.asarray(added)
    _, found = term((t,), (t,), (MASK,))
    norm = np.linalg.norm((t + added)[MASK]) / np.linalg.norm(t[MASK])
    assert float(found["pixel_relation/P3/teacher_norm"]) == pytest.approx(norm, rel=1e-6)
    assert float(found["pixel_relation/P3/teacher_variance"]) == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("arithmetic", ["plain", "gram"])
def test_a_flat_map_has_a_finite_loss_and_no_gradient_that_breaks(arithmetic):
    t = np.random.default_rng(0).standard_normal((2, 6, 7, 5)).astype(np.float32)
    term = pixel_term(arithmetic)
    for mask in (MASK, np.zeros_like(MASK)):
        flat = jnp.full(t.shape, 2.0)
        loss, gradient = jax.value_and_grad(
            lambda s, m=mask: term((s,), (t,), (m,), train=False)[0]
        )(flat)
        # Measured: 1.2e-4, and 0 without a pixel.
        assert float(loss) == pytest.approx(float(mask.any()), abs=1e-3)
        assert np.isfinite(gradient).all()


def test_the_running_scale_starts_at_the_first_batch_and_follows_slowly():
    scale = TeacherScale(1)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 4, 4, 3)), jnp.float32)
    mask = np.ones((2, 4, 4), bool)
    (first,) = scale((x,), (mask,), train=True)
    start = float(scale.variance[0])
    expected = ((np.asarray(x) - np.asarray(x).mean((0, 1, 2))) ** 2).mean()
    assert start == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(first, x / start**0.5, rtol=1e-5)
    scale((3 * x,), (mask,), train=True)
    assert float(scale.variance[0]) == pytest.approx(start * (1 + 0.01 * 8), rel=1e-5)
    now = float(scale.variance[0])
    (later,) = scale((7 * x,), (mask,), train=False)
    np.testing.assert_allclose(later, 7 * x / now**0.5, rtol=2e-7)  # measured: 0
    scale((0 * x,), (mask,), train=True)
    scale((7 * x,), (0 * mask.astype(int) > 0,), train=True)
    assert float(scale.variance[0]) == pytest.approx(start * (1 + 0.01 * 8), rel=1e-5)


def test_running_statistics_go_a_tenth_of_the_way_to_a_mean_of_unbiased_variances():
    """Like PyTorch's; groups without pixels do not count, and one with a single pixel is finite."""
    given = np.random.default_rng(0).standard_normal((2, 4, 3)).astype(np.float32)
    parts = given[0, :2], given[1], given[0, :0], given[0, 3:]
    sides = [(x.mean(0), x.var(0), len(x)) if len(x) else (9, 9, 0) for x in parts]
    moments = Moments(
        *(np.stack([np.broadcast_to(side[k], 3) for side in sides]) for k in range(2)),
        np.float32([side[2] for side in sides]),
    )
    mean, variance = moved(np.full(3, 0.5, np.float32), np.full(3, 2, np.float32), moments)
    seen = [x for x in parts if len(x)]
    wanted = [np.mean([x.mean(0) for x in seen], 0)]
    wanted.append(np.mean([x.var(0, ddof=1) if len(x) > 1 else x[0] * 0 for x in seen], 0))
    for found, start, end in zip((mean, variance), (0.5, 2), wanted, strict=True):
        # Measured: 7.5e-8 of it.
        np.testing.assert_allclose(found, 0.9 * start + 0.1 * end, rtol=5e-7)


@pytest.mark.parametrize("way", ["frozen", "average", "pretrained"])
def test_frozen_is_frozen_by_construction(way):
    """No part of the teacher's modules is an `nnx.Param`, so no loop can train them by mistake."""
    values = settings(teacher_modules=way)
    of_boxes = "frozen" if way == "pretrained" else way  # which boxes have not
    values["instance_relation"] |= {"teacher_modules": of_boxes, "similarity": "bilinear"}
    module = make(values, STUDENT, pyramid(1, 6))
    for name in ("pixel_relation", "instance_relation"):
        term = getattr(module, name)
        assert not jax.tree.leaves(nnx.state(term.teacher, nnx.Param))
        assert jax.tree.leaves(nnx.state(term.teacher, Frozen))


def test_no_gradient_reaches_the_teachers_maps(paper):
    def total(maps):
        module = nnx.merge(paper.graph, paper.params, paper.rest, copy=True)
        return call(module, STUDENT, Features(maps, TEACHER.spec), targets()).total

    assert all((g == 0).all() for g in jax.jit(jax.grad(total))(TEACHER.maps))


def test_the_total_is_weighted(paper):
    output, _ = paper.run(paper.params, paper.rest, STUDENT, TEACHER, targets())
    weights = paper.distiller.weights
    expected = sum(weights[name] * float(loss) for name, loss in output.losses.items())
    assert float(output.total) == pytest.approx(expected, rel=1e-5)


def test_a_term_of_weight_0_is_not_there():
    values = settings()
    values["pixel_relation"]["weight"] = 0
    assert set(distill_config(values).terms) == {"instance_relation", "instance_feature"}
    module = make(values, STUDENT, TEACHER)
    assert module.pixel_relation is None
    assert "pixel_relation" not in call(module, STUDENT, TEACHER, targets()).losses


def test_pyramids_that_do_not_say_how_they_are_made_pair_by_stride():
    plain = FeatureSpec((10, 10), (8, 16))
    module = make(settings(), STUDENT, Features(TEACHER.maps, plain))
    assert [pair.stride for pair in module.pairs] == [8, 16]
