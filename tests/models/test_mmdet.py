"""Our detectors against mmdetection's own, stage by stage, from the padded tensor on.

The answers in tests/fixtures/mmdet are from mmdetection 3.3.0 with narrow forms of its shipped
configs; `python -m crosscheck.reference.mmdet tests/fixtures/mmdet` generates them. Both sides draw
the same weights and images. DRKD_MMDET=FOLDER selects another folder's answers, such as those of
the full-size models of request_full.json.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from drkd_jax.models.dense import assign
from drkd_jax.models.rpn import propose
from drkd_jax.types import Features
from tests import jitter, margins
from tests.models import small
from tests.models.mmdet_answers import (
    batch,
    check_detections,
    check_gradients,
    check_losses,
    check_maps,
    close,
    compiled,
    in_their_order,
    load,
    padded,
    their_regions,
    their_sample,
)


@pytest.fixture(scope="module")
def faster():
    case = load("faster_rcnn")

    def run(net, images, targets, chosen, regions, proposals):
        body = net.backbone(images, None)
        features = net.features(images)
        outputs = net.rpn(features.maps)
        anchors = np.concatenate(net._anchors(features))
        assigned = assign(anchors, targets, net.convention.rpn, net.convention)
        losses = net.losses_at(features, targets, outputs, assigned, chosen, regions)
        pooled = net.roi.pool(features.maps, features.spec, proposals)
        second = net.roi(features.maps, features.spec, proposals)
        return losses, (body, features.maps, outputs, pooled, second)

    case.run, case.exact_gradients = compiled(case, run)
    return case


@pytest.mark.parametrize("number", [0, 1])
def test_faster_rcnn_is_theirs(faster, number):
    if number >= len(faster.model["batches"]):
        pytest.skip("answers of full size hold one batch")
    images, targets, answers = batch(faster, number)
    B, K = len(images), faster.model["num_classes"]
    proposals, valid = padded(answers, "proposals", B, 200)
    chosen, regions = their_sample(answers, B), their_regions(answers, targets, K)
    given = images, targets, chosen, regions, proposals
    losses, more = faster.run(*given)
    body, maps, (logits, deltas), pooled, second = more
    net = nnx.merge(faster.graph, faster.state, copy=True)
    features, rules = Features(maps, net.spec), net.settings.proposals
    levels = net._anchors(features)
    with margins.clear(floor=0.05):
        own = propose(
            *(logits, deltas),
            *(levels, targets.sizes),
            pre_nms=rules.pre_nms_test,
            max_out=rules.max_out_test,
            nms_threshold=rules.nms,
            convention=net.convention,
        )
        found = net.predict(features, targets.sizes)
        assigned = assign(np.concatenate(levels), targets, net.convention.rpn, net.convention)
        net.roi.pool(maps, net.spec, regions.boxes)
    check_maps(faster, body, maps, answers)
    for level, x in enumerate(maps):
        shape = x.shape[1:3]
        for name, values, last in (("rpn logits", logits, 1), ("rpn deltas", deltas, 4)):
            theirs = in_their_order(values[level], shape, last)
            close(faster, answers, f"{name}.{level}", theirs, 2e-5)
    for b in range(B):
        wanted = answers[f"proposals.{b}"]
        got = np.asarray(own.boxes[b])[np.asarray(own.valid[b])]
        assert len(got) == len(wanted)
        np.testing.assert_allclose(
            own.scores[b][: len(got)], answers[f"proposal scores.{b}"], atol=1e-5
        )
        np.testing.assert_allclose(got, wanted, atol=0.01)
        alike = margins.tied(np.concatenate(levels), targets.boxes[b][targets.valid[b]])
        assert np.all((np.asarray(assigned.positive[b]) | alike)[answers[f"anchors.positive.{b}"]])
        assert np.all(np.asarray(assigned.negative[b])[answers[f"anchors.negative.{b}"]])
    close(faster, answers, "regions", np.asarray(pooled)[valid].transpose(0, 3, 1, 2), 2e-5)
    close(faster, answers, "class logits", np.asarray(second[0])[valid], 2e-5)
    flat = np.asarray(second[1])[valid]
    close(faster, answers, "class deltas", flat.reshape(len(flat), -1), 2e-5)
    check_detections(faster, found, answers, B)
    check_losses(losses, answers)
    if number == 0:
        with jitter.still():
            images, targets, _ = batch(faster, number)
        given = images, targets, chosen, their_regions(answers, targets, K), proposals
        check_gradients(faster, faster.exact_gradients(*given), answers)


@pytest.fixture(scope="module")
def retina():
    case = load("retinanet")

    def run(net, images, targets):
        body = net.backbone(images, None)
        features = net.features(images)
        outputs = net.head(features.maps)
        losses = net.losses(features, targets, jax.random.split(jax.random.key(0), len(images)))
        return losses, (body, features.maps, outputs)

    case.run, case.exact_gradients = compiled(case, run)
    return case


@pytest.mark.parametrize("number", [0, 1])
def test_retinanet_is_theirs(retina, number):
    if number >= len(retina.model["batches"]):
        pytest.skip("answers of full size hold one batch")
    images, targets, answers = batch(retina, number)
    losses, (body, maps, outputs) = retina.run(images, targets)
    net = nnx.merge(retina.graph, retina.state, copy=True)
    features, rule = Features(maps, net.spec), net.convention
    with margins.clear(floor=0.05):
        found = net.predict(features, targets.sizes)
        assigned = assign(np.concatenate(net._anchors(features)), targets, rule.dense, rule)
    check_maps(retina, body, maps, answers)
    K = retina.model["num_classes"]
    for level, x in enumerate(maps):
        for name, values, last in zip(
            ("class logits", "class deltas"), outputs, (K, 4), strict=True
        ):
            theirs = in_their_order(values[level], x.shape[1:3], last)
            close(retina, answers, f"{name}.{level}", theirs, 2e-5)
    for b in range(len(images)):
        positive = np.flatnonzero(np.asarray(assigned.positive[b]))
        np.testing.assert_array_equal(positive, answers[f"anchors.positive.{b}"])
        assert np.sum(assigned.negative[b]) == answers[f"anchors.negatives.{b}"]
    check_detections(retina, found, answers, len(images))
    check_losses(losses, answers)
    if number == 0:
        with jitter.still():
            images, targets, _ = batch(retina, number)
        check_gradients(retina, retina.exact_gradients(images, targets), answers)


# With deformable taps, which depend on the features, rounding grows from block to block.
@pytest.mark.parametrize(("name", "error"), [("x101_64x4d", 1.5e-5), ("x101_32x4d_dcn", 1e-4)])
def test_resnext_maps_are_theirs(name, error):
    case = load(name)
    images, _, answers = batch(case, 0)

    @partial(jax.jit, compiler_options=small.QUICK)
    def run(state, images):
        net = nnx.merge(case.graph, state, copy=True)
        body = net.backbone(images, None)
        return body, net.neck(body)

    check_maps(case, *run(case.state, images), answers, error)


def test_cascade_rcnn_detects_the_same():
    case = load("cascade_rcnn")
    images, targets, answers = batch(case, 0)

    @partial(jax.jit, compiler_options=small.QUICK)
    def run(state, images):
        return nnx.merge(case.graph, state, copy=True).features(images).maps

    net = nnx.merge(case.graph, case.state, copy=True)
    features = Features(run(case.state, images), net.spec)
    with margins.clear(floor=0.05):
        found = net.predict(features, jnp.asarray(targets.sizes))
    check_detections(case, found, answers, len(images))
