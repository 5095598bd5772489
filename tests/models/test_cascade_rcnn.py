"""Cascade R-CNN's refusals, and its three stages against a loop (see also test_mmdet.py)."""

from __future__ import annotations

import types
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from drkd_jax import boxes as box_ops
from drkd_jax import models
from drkd_jax.errors import UserError
from drkd_jax.models import faster_rcnn
from drkd_jax.models.cascade_rcnn import STAGE_STDS, CascadeRCNN
from drkd_jax.models.dense import level_anchors
from drkd_jax.models.rpn import Proposals, propose
from drkd_jax.types import Features
from tests import margins
from tests.models import small

SETTINGS = {
    **small.SETTINGS["faster_rcnn"],
    "detector": "cascade_rcnn",
    "roi_sampling": 2,
    "test": {"score": 0.0, "pre_nms": 2000, "max_out": 90, "nms": 1.0},
}


def test_every_stage_refines_the_boxes_of_the_one_before():
    net = models.init_detector(SETTINGS, small.NUM_CLASSES, 0)
    for head in net.roi:  # moves and classes that matter
        head.box.kernel[...] = head.box.kernel[...] * 300
        head.cls.kernel[...] = head.cls.kernel[...] * 30
    images, targets, _ = small.batch()
    graph, state = nnx.split(net)
    features = jax.jit(lambda state: nnx.merge(graph, state, copy=True).features(images))(state)
    with margins.clear():
        found = net.predict(features, targets.sizes)
    shapes = [m.shape[1:3] for m in features.maps]
    rule, rules = net.convention, net.settings.proposals
    proposals = propose(
        *net.rpn(features.maps),
        level_anchors(net.settings.anchors, net.spec.strides, shapes, rule),
        targets.sizes,
        pre_nms=rules.pre_nms_test,
        max_out=rules.max_out_test,
        nms_threshold=rules.nms,
        convention=rule,
    )
    boxes, logits = proposals.boxes, []
    for head, stds in zip(net.roi, STAGE_STDS, strict=True):
        classes, moves = head(features.maps, net.spec, boxes)
        assert moves.shape[2] == 1  # class-agnostic
        logits.append(np.asarray(classes))
        before = boxes
        boxes = box_ops.clip(box_ops.decode(boxes, moves[:, :, 0], stds), targets.sizes)
        assert np.abs(boxes - before).max() > 1
    probability = np.asarray(jax.nn.softmax(jnp.asarray(np.mean(logits, axis=0)), axis=-1))
    every = net.unsuppressed(features, targets.sizes)
    np.testing.assert_allclose(every.boxes[:, :, 0], boxes, atol=2e-5)  # measured: 0
    known = np.asarray(proposals.valid)[..., None] * probability[..., :-1]
    np.testing.assert_allclose(every.scores, known, atol=1e-6)
    for b in range(len(images)):
        valid = np.asarray(proposals.valid[b])
        own = {
            (round(float(probability[b, r, k]), 5), k): np.asarray(boxes[b, r])
            for r in np.flatnonzero(valid)
            for k in range(small.NUM_CLASSES)
        }
        best = sorted(own, reverse=True)[:10]
        for n, (score, label) in enumerate(best):
            assert float(found.scores[b, n]) == pytest.approx(score, abs=2e-5)
            assert int(found.labels[b, n]) == label
            np.testing.assert_allclose(found.boxes[b, n], own[score, label], atol=1e-3)


def test_large_moves_are_limited_and_classes_are_those_of_the_data():
    """Two regions whose sides the first stage makes as much larger and smaller as is possible."""
    own = {"convention": "mmdet", "head_classes": 3, "class_ids": (2, 0)}
    net = models.abstract_detector({**SETTINGS, **own}, 2)
    regions = jnp.asarray([[[198.0, 198, 202, 202], [100, 100, 300, 300]]])
    proposals = Proposals(regions, jnp.ones((1, 2)), jnp.ones((1, 2), bool))
    logits = jnp.asarray([[[0.0, 1, 3, 0], [4.0, 1, 0, 0]]])  # the last one: background
    moves = jnp.asarray([[[0.0, 0, 100, 100], [0, 0, -100, -100]]])[:, :, None]
    given = {name: getattr(net, name) for name in ("settings", "convention", "spec")}
    given |= {name: getattr(net, name) for name in ("from_head", "classes_from_head")}
    heads = [lambda *_: (logits, moves), *[lambda *_: (logits, 0 * moves)] * 2]
    given |= {"last_stds": net.last_stds, "_proposals": lambda *_: proposals}
    fixed = types.SimpleNamespace(**given, roi=heads)
    fixed._second_stage = partial(CascadeRCNN._second_stage, fixed)
    sizes = jnp.asarray([[400, 400]])
    every = CascadeRCNN.unsuppressed(fixed, Features((), net.spec), sizes)
    # The limit is a factor of 1000 / 16: 4 pixels become 250, and 200 become 3.2.
    wanted = [[75.0, 75, 325, 325], [198.4, 198.4, 201.6, 201.6]]
    np.testing.assert_allclose(every.boxes[0, :, 0], wanted, atol=1e-5, rtol=0)
    probability = np.asarray(jax.nn.softmax(logits[0]))
    np.testing.assert_allclose(every.scores[0], probability[:, [2, 0]], atol=1e-8, rtol=0)
    found = CascadeRCNN.predict(fixed, Features((), net.spec), sizes)
    assert found.labels[0, :2].tolist() == [1, 0]
    np.testing.assert_allclose(found.boxes[0, :2], wanted[::-1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["faster_rcnn", "cascade_rcnn"])
def test_regions_have_limits_of_their_own_in_training_and_in_test(kind, monkeypatch):
    limits = []

    def noted(*given, **how):
        limits.append((how["pre_nms"], how["max_out"]))
        return propose(*given, **how)

    monkeypatch.setattr(faster_rcnn, "propose", noted)
    own = {"pre_nms": 60, "max_out": 30, "pre_nms_test": 50, "max_out_test": 20}
    settings = {**SETTINGS, "detector": kind, "proposals": own}
    graph, state = nnx.split(models.abstract_detector(settings, small.NUM_CLASSES))
    _, targets, keys = small.batch()
    maps = [jax.ShapeDtypeStruct((2, 64 // s, 96 // s, 16), "float32") for s in (4, 8, 16, 32)]

    def run(state, maps):
        net = nnx.merge(graph, state, copy=True)
        features = Features(tuple(maps), net.spec)
        if kind == "faster_rcnn":
            net.losses(features, targets, keys)
        return net.predict(features, targets.sizes)

    jax.eval_shape(run, state, maps)
    assert limits == [(60, 30)] * (kind == "faster_rcnn") + [(50, 20)]


def test_it_says_that_it_is_not_trained():
    net = models.abstract_detector(SETTINGS, small.NUM_CLASSES)
    _, targets, keys = small.batch()
    with pytest.raises(UserError, match="cascade_rcnn has no training losses"):
        net.losses(Features((), net.spec), targets, keys)


def test_boxes_of_every_class_are_refused():
    with pytest.raises(UserError, match="class_agnostic"):
        models.abstract_detector({**SETTINGS, "class_agnostic": False}, 3)
