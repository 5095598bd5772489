"""Targets, normalisers and proposals against loops."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from drkd_jax.models.conventions import CONVENTIONS, Conventions
from drkd_jax.models.dense import assign, level_anchors
from drkd_jax.models.retina_head import retina_detections, retina_losses
from drkd_jax.models.roi_head import Regions, roi_losses, sample_regions
from drkd_jax.models.rpn import (
    Proposals,
    RPNHead,
    propose,
    rpn_losses,
    sample_anchors,
    side_by_side,
)
from drkd_jax.models.settings import (
    AnchorSettings,
    FasterRCNNSettings,
    SamplerSettings,
    TestSettings,
)
from drkd_jax.ops.platform import tracing_for
from tests import margins, oracles
from tests.models import small

RULE = CONVENTIONS["mmdet"]
ANCHORS = level_anchors(AnchorSettings(2.0, (0.5, 1.0), 2), (16, 32), ((4, 6), (2, 3)), RULE)
ALL = np.concatenate(ANCHORS)
RNG = np.random.default_rng(1)
K = small.NUM_CLASSES


def outputs(images):
    logits = RNG.normal(size=(images, len(ALL), K)).astype(np.float32)
    deltas = RNG.normal(size=(images, len(ALL), 4)).astype(np.float32) * 0.3
    return logits, deltas


def by_level(values):
    cut = len(ANCHORS[0])
    return values[:, :cut], values[:, cut:]


def matched(targets, rule):
    """(truth, positive, negative) of each image, by loops."""
    found = []
    for b in range(len(targets.sizes)):
        h, w = -(-targets.sizes[b] // 32) * 32
        centres = (ALL[:, :2] + ALL[:, 2:]) / 2
        inside = (centres[:, 0] < w - 0.5) & (centres[:, 1] < h - 0.5)
        found.append(
            oracles.match(
                oracles.pairwise_iou(ALL, targets.boxes[b]),
                targets.valid[b],
                rule.positive,
                rule.negative,
                rule.low_quality,
                inside & targets.image_valid[b],
                True,
            )
        )
    return [np.stack(x) for x in zip(*found, strict=True)]


def test_level_anchors_have_the_scales_of_their_octaves():
    cell = ANCHORS[0][:4]
    sides = np.sqrt((cell[:, 2] - cell[:, 0]) * (cell[:, 3] - cell[:, 1]))
    np.testing.assert_allclose(sides, [32, 32 * 2**0.5] * 2, rtol=1e-6)
    assert len(ANCHORS[0]) == 4 * 6 * 4


def test_assignment_leaves_out_what_lies_past_the_images_own_padding():
    _, targets, _ = small.batch(filling=1)
    targets.sizes[1] = (30, 33)
    with margins.clear():
        got = assign(ALL, targets, RULE.dense, RULE)
    _, positive, negative = matched(targets, RULE.dense)
    np.testing.assert_array_equal(got.positive, positive)
    np.testing.assert_array_equal(got.negative, negative)
    centres = (ALL[:, :2] + ALL[:, 2:]) / 2
    outside = (centres[:, 0] > 63) | (centres[:, 1] > 31)
    assert outside.any()
    assert not np.any(np.asarray(got.positive | got.negative)[1, outside])
    assert not np.any(np.asarray(got.positive | got.negative)[2])


def test_retina_losses_are_sums_over_max_positives_and_one():
    _, targets, _ = small.batch(count=2, filling=1)
    targets.valid[1] = False  # an image without a box counts as one
    logits, deltas = outputs(3)
    with margins.clear():
        assigned = assign(ALL, targets, RULE.dense, RULE)
    got = retina_losses(by_level(logits), by_level(deltas), ALL, assigned, targets, RULE)
    truth, positive, negative = matched(targets, RULE.dense)
    cls = box = normaliser = 0.0
    for b in range(2):
        normaliser += max(positive[b].sum(), 1)
        for a in np.flatnonzero(positive[b] | negative[b]):
            for k in range(K):
                p = 1 / (1 + np.exp(-np.float64(logits[b, a, k])))
                if positive[b, a] and targets.labels[b, truth[b, a]] == k:
                    cls -= 0.25 * (1 - p) ** 2 * np.log(p)
                else:
                    cls -= 0.75 * p**2 * np.log(1 - p)
            if positive[b, a]:
                wanted = oracles.encode(ALL[a], targets.boxes[b, truth[b, a]], (1, 1, 1, 1))
                box += np.abs(deltas[b, a] - wanted).sum()
    assert positive[0].sum() > 1
    assert float(got["cls_loss"]) == pytest.approx(cls / normaliser, rel=1e-5)
    assert float(got["box_loss"]) == pytest.approx(box / normaliser, rel=1e-5)


def whole_focal_loss(logits, assigned, targets):
    """The class loss of all levels at once, by its equation, with automatic gradients."""
    labels = jnp.take_along_axis(jnp.asarray(targets.labels), assigned.truth, axis=1)
    truth = assigned.positive[..., None] & (labels[..., None] == jnp.arange(K))
    counts = (assigned.positive | assigned.negative)[..., None]
    toward = jnp.where(truth, logits, -logits)
    loss = jnp.exp(2.0 * jax.nn.log_sigmoid(-toward)) * jax.nn.log_sigmoid(toward)
    loss = -jnp.where(truth, 0.25, 0.75) * loss
    return jnp.where(counts, loss, 0.0).sum() / jnp.maximum(assigned.positive.sum(axis=1), 1).sum()


@pytest.mark.parametrize("where", ["cpu", "gpu"])
def test_the_focal_loss_by_level_is_that_of_all_levels_at_once(where):
    _, targets, _ = small.batch()
    assigned = assign(ALL, targets, RULE.dense, RULE)
    logits, deltas = outputs(2)

    def by_levels(logits):
        given = by_level(logits), by_level(deltas), ALL, assigned, targets, RULE
        with tracing_for(where):
            return retina_losses(*given)["cls_loss"]

    with jax.enable_x64(True):
        wide = jnp.asarray(logits, jnp.float64)
        wide = wide.at[0, 0].set(jnp.asarray([-700.0, 0.0, 700.0]))
        got = jax.jit(jax.value_and_grad(by_levels))(wide)
        wanted = jax.jit(jax.value_and_grad(whole_focal_loss))(wide, assigned, targets)
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-15 * np.abs(b).max())

    low = jnp.asarray(logits, jnp.bfloat16)
    kept = jax.tree.leaves(jax.vjp(by_levels, low)[1])
    wide = [leaf for leaf in kept if leaf.ndim == 3 and leaf.shape[-1] == K]
    assert {leaf.dtype for leaf in wide} == {jnp.dtype(jnp.bfloat16)}
    assert sum(leaf.size for leaf in wide) == low.size


def test_two_convolutions_side_by_side_are_the_two():
    with jax.enable_x64(True):
        settings = FasterRCNNSettings(channels=8)
        head = RPNHead(settings, rngs=nnx.Rngs(0), dtype=jnp.dtype(jnp.float64))
        graph, state = nnx.split(head)
        state = jax.tree.map(lambda leaf: jnp.asarray(RNG.normal(size=leaf.shape)), state)
        x = jnp.asarray(RNG.normal(size=(2, 3, 5, 8)))

        def found(run):
            def total(state, x):
                head = nnx.merge(graph, state, copy=True)
                outs = run(head.cls, head.box, x)
                return sum((out * jnp.cos(out)).sum() for out in outs), outs

            return jax.value_and_grad(total, (0, 1), has_aux=True)(state, x)

        got, wanted = found(side_by_side), found(lambda cls, box, x: (cls(x), box(x)))
    assert [out.shape[-1] for out in got[0][1]] == [3, 12]
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert one.dtype == jnp.float64
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-13)


def test_rpn_losses_divide_by_sampled_positives_and_negatives():
    _, targets, keys = small.batch(count=2, filling=1)
    targets.valid[1] = False
    targets.boxes[0, 0] = ALL[40] + 1  # near enough to an anchor to be matched
    logits, deltas = outputs(3)
    logits = logits[..., 0]
    with margins.clear():
        assigned = assign(ALL, targets, RULE.rpn, RULE)
    everything = SamplerSettings(rpn=2 * len(ALL), rpn_positive=0.5)
    chosen = sample_anchors(assigned, keys, everything)
    got = rpn_losses(logits, deltas, ALL, assigned, chosen, targets, RULE)
    truth, positive, negative = matched(targets, RULE.rpn)
    cls = box = normaliser = 0.0
    for b in range(2):
        normaliser += max(positive[b].sum(), 1) + max(negative[b].sum(), 1)
        p = 1 / (1 + np.exp(-logits[b].astype(np.float64)))
        cls -= np.log(p[positive[b]]).sum() + np.log(1 - p[negative[b]]).sum()
        for a in np.flatnonzero(positive[b]):
            wanted = oracles.encode(ALL[a], targets.boxes[b, truth[b, a]], (1, 1, 1, 1))
            box += np.abs(deltas[b, a] - wanted).sum()
    assert positive[0].sum() > 0
    assert float(got["rpn_cls_loss"]) == pytest.approx(cls / normaliser, rel=1e-5)
    assert float(got["rpn_box_loss"]) == pytest.approx(box / normaliser, rel=1e-5)


def test_roi_losses_divide_by_all_sampled_regions():
    low = RNG.uniform(0, 30, (2, 5, 2))
    boxes = np.concatenate([low, low + 20], -1).astype(np.float32)
    positive = np.array([[1, 1, 0, 0, 0], [1, 0, 0, 0, 0]], bool)
    valid = np.array([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]], bool)
    labels = np.where(positive, RNG.integers(0, K, (2, 5)), K).astype(np.int32)
    truth = (boxes + RNG.uniform(-3, 3, boxes.shape)).astype(np.float32)
    logits = RNG.normal(size=(2, 5, K + 1)).astype(np.float32)
    deltas = RNG.normal(size=(2, 5, K, 4)).astype(np.float32)
    got = roi_losses(logits, deltas, Regions(boxes, labels, truth, positive, valid), RULE)
    cls = box = 0.0
    for at in zip(*np.nonzero(valid), strict=True):
        z = logits[at].astype(np.float64)
        cls += np.log(np.exp(z).sum()) - z[labels[at]]
        if positive[at]:
            wanted = oracles.encode(boxes[at], truth[at], (0.1, 0.1, 0.2, 0.2))
            box += np.abs(deltas[at][labels[at]] - wanted).sum()
    assert float(got["roi_cls_loss"]) == pytest.approx(cls / 7, rel=1e-5)
    assert float(got["roi_box_loss"]) == pytest.approx(box / 7, rel=1e-5)


def test_ground_truths_are_regions_of_their_own():
    _, targets, keys = small.batch(count=2, filling=1)
    nothing = Proposals(jnp.zeros((3, 4, 4)), jnp.zeros((3, 4)), jnp.zeros((3, 4), bool))
    got = sample_regions(nothing, targets, keys, K, SamplerSettings(roi=16), RULE)
    np.testing.assert_array_equal(got.valid.sum(1), [3, 3, 0])
    np.testing.assert_array_equal(got.positive, got.valid)
    for b in range(2):
        rows = np.asarray(got.boxes[b])[np.asarray(got.valid[b])]
        assert sorted(map(tuple, rows)) == sorted(map(tuple, targets.boxes[b, :3]))
        np.testing.assert_array_equal(rows, np.asarray(got.truth[b])[np.asarray(got.valid[b])])


def test_without_a_row_for_ground_truth_every_region_is_background():
    _, targets, keys = small.batch(filling=1)
    none = targets._replace(**{f: getattr(targets, f)[:, :0] for f in ("boxes", "labels", "valid")})
    proposals = Proposals(jnp.ones((3, 6, 4)), jnp.ones((3, 6)), jnp.ones((3, 6), bool))
    got, padded = (
        sample_regions(proposals, given, keys, K, SamplerSettings(roi=16), RULE)
        for given in (none, targets._replace(valid=np.zeros_like(targets.valid)))
    )
    np.testing.assert_array_equal(got.valid.sum(1), [6, 6, 0])
    for name in ("boxes", "labels", "positive", "valid"):
        np.testing.assert_array_equal(getattr(got, name), getattr(padded, name))


def test_at_most_a_quarter_of_the_regions_is_positive():
    _, targets, keys = small.batch()
    near = np.repeat(targets.boxes[:, :3], 10, axis=1)
    far = np.tile(np.float32([60, 50, 64, 54]), (2, 30, 1))
    boxes = jnp.concatenate([near, far], axis=1)
    proposals = Proposals(boxes, jnp.ones((2, 60)), jnp.ones((2, 60), bool))
    got = sample_regions(proposals, targets, keys, K, SamplerSettings(roi=16), RULE)
    np.testing.assert_array_equal(got.positive.sum(1), [4, 4])
    np.testing.assert_array_equal(got.valid.sum(1), [16, 16])
    np.testing.assert_array_equal(np.asarray(got.labels)[~np.asarray(got.positive)], K)


def test_proposals_are_those_of_the_loop():
    _, targets, _ = small.batch(filling=1)
    scores = RNG.normal(size=(3, len(ALL))).astype(np.float32)
    deltas = outputs(3)[1]
    deltas[0, np.argmax(scores[0, :96])] = [-40, 0, 0, 0]  # decodes to no width at all
    with margins.clear():
        got = propose(
            *(by_level(scores), by_level(deltas)),
            *(ANCHORS, targets.sizes),
            pre_nms=30,
            max_out=25,
            nms_threshold=0.5,
            convention=RULE,
        )
    assert not np.any(np.asarray(got.valid)[2])
    for b in range(2):
        h, w = targets.sizes[b]
        rows = []
        for level, s, d in zip(ANCHORS, by_level(scores), by_level(deltas), strict=True):
            best = np.argsort(-s[b], kind="stable")[:30]
            sides = level[best, 2:] - level[best, :2]
            centres = (level[best, :2] + level[best, 2:]) / 2 + d[b, best, :2] * sides
            half = np.exp(d[b, best, 2:]) * sides / 2
            boxes = np.concatenate([centres - half, centres + half], 1).clip(0, [w, h, w, h])
            proper = (boxes[:, 2:] > boxes[:, :2]).all(1)
            kept = oracles.nms(boxes, s[b, best], proper, None, 0.5)
            rows += [(s[b, best][i], *boxes[i]) for i in np.flatnonzero(kept)]
        rows = np.array(sorted(rows, reverse=True)[:25])
        valid = np.asarray(got.valid[b])
        assert valid.sum() == len(rows)
        np.testing.assert_allclose(np.asarray(got.boxes[b])[valid], rows[:, 1:], atol=1e-3)
        wanted = 1 / (1 + np.exp(-rows[:, 0]))
        np.testing.assert_allclose(np.asarray(got.scores[b])[valid], wanted, rtol=1e-5)


def test_nothing_is_differentiated_through_the_proposals():
    anchors = np.float32([[10, 10, 30, 30], [40, 40, 60, 60]])
    limits = {"pre_nms": 2, "max_out": 2, "nms_threshold": 0.7, "convention": RULE}

    def total(logits, deltas):
        found = propose((logits,), (deltas,), (anchors,), np.int32([[64, 64]]), **limits)
        return found.boxes.sum() + found.scores.sum()

    call = jax.jit(jax.value_and_grad(total, (0, 1)), compiler_options=small.QUICK)
    value, pulls = call(np.ones((1, 2), np.float32), np.zeros((1, 2, 4), np.float32))
    assert value > 200
    assert not any(np.any(pull) for pull in pulls)


def test_retina_detections_take_pairs_of_anchor_and_class():
    logits = np.full((1, len(ALL), K), -9.0, np.float32)
    logits[0, 5, [0, 2]] = [2.0, 1.0]
    logits[0, 50, 1] = 3.0
    logits[0, 51, 1] = -2.8  # a probability of 0.057: above the limit
    logits[0, 60, 1] = -3.0  # 0.047: below
    deltas = np.zeros((1, len(ALL), 4), np.float32)
    got = retina_detections(
        by_level(logits),
        by_level(deltas),
        ANCHORS,
        np.array([[64, 96]], np.int32),
        TestSettings(max_out=6, pre_nms=10, nms=0.9),
        RULE,
    )
    np.testing.assert_array_equal(got.valid[0], [1, 1, 1, 1, 0, 0])
    np.testing.assert_array_equal(got.labels[0][:4], [1, 0, 2, 1])
    wanted = 1 / (1 + np.exp(-np.array([3.0, 2.0, 1.0, -2.8])))
    np.testing.assert_allclose(got.scores[0][:4], wanted, rtol=1e-5)
    np.testing.assert_allclose(got.boxes[0][1], ALL[5].clip(0, [96, 64, 96, 64]))


def test_conventions_are_constants():
    assert isinstance(RULE, Conventions)
    assert jax.tree.leaves(RULE) == [RULE]
    with pytest.raises(AttributeError):
        RULE.padding = 1
