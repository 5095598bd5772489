"""The effect of each field of the conventions, by hand-made numbers and loops."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from drkd_jax import models
from drkd_jax.errors import UserError
from drkd_jax.models.conventions import CONVENTIONS, LIBRARY_SETTINGS, MMDET, TORCHVISION
from drkd_jax.models.dense import assign, level_anchors, sizable
from drkd_jax.models.retina_head import retina_detections, retina_losses
from drkd_jax.models.roi_head import Regions, roi_detections, roi_losses, roi_unsuppressed
from drkd_jax.models.rpn import Proposals, propose, rpn_losses
from drkd_jax.models.settings import AnchorSettings, TestSettings
from drkd_jax.ops.sampling import Sampled
from drkd_jax.types import Detections
from tests import oracles
from tests.models import small

OLD = CONVENTIONS["mmdet-2.3"]
RNG = np.random.default_rng(4)
CANVAS = np.array([[64, 64]], np.int32)


def test_the_table_of_torchvisions_anchors():
    # Strides of a canvas of 160 x 224 whose P6 is 3 x 4, and P7 2 x 2: 160 // 3, 224 // 4, ...
    shapes = ((20, 28), (10, 14), (5, 7), (3, 4), (2, 2))
    levels = level_anchors(
        AnchorSettings(4.0, octaves=3), (8, 16, 32, 64, 128), shapes, TORCHVISION
    )
    assert [len(level) for level in levels] == [9 * h * w for h, w in shapes]
    # int(32 * 2^(1/3)) = 40 and int(32 * 2^(2/3)) = 50; a ratio of 1 comes fourth.
    np.testing.assert_array_equal(
        levels[0][3:6], [[-16, -16, 16, 16], [-20, -20, 20, 20], [-25, -25, 25, 25]]
    )
    for level, (y, x) in zip(levels[3:], ((53, 56), (80, 112)), strict=True):
        np.testing.assert_array_equal(level[9 + 3] - level[3], [x, 0, x, 0])
        width = {53: 4, 80: 2}[y]
        np.testing.assert_array_equal(level[9 * width + 3] - level[3], [0, y, 0, y])
    whole = np.concatenate(levels)
    np.testing.assert_array_equal(whole, np.round(whole))
    plain = level_anchors(AnchorSettings(4.0, octaves=3), (8, 16, 32, 64, 128), shapes, MMDET)
    np.testing.assert_allclose(plain[3][9 + 3] - plain[3][3], [64, 0, 64, 0], atol=1e-4)
    np.testing.assert_allclose(plain[0][4], [-20.1587, -20.1587, 20.1587, 20.1587], atol=1e-3)


def test_torchvision_trains_on_all_of_the_canvas():
    anchors = level_anchors(AnchorSettings(2.0), (32,), ((2, 3),), MMDET)[0]
    _, targets, _ = small.batch(filling=1)
    targets.sizes[1] = (30, 33)
    counted = [
        np.asarray((found := assign(anchors, targets, rule.rpn, rule)).positive | found.negative)
        for rule in (MMDET, dataclasses.replace(MMDET, train_padding=True))
    ]
    assert counted[0][1].sum() == 2 * 3  # the cells whose corner lies within 32 x 64
    assert counted[1][1].sum() == 6 * 3
    assert not counted[1][2].any()


def test_who_a_low_quality_match_belongs_to():
    anchors = np.float32([[0, 0, 20, 10], [40, 40, 60, 60]])
    _, targets, _ = small.batch(count=1)
    targets.valid[0, 2] = False
    targets.boxes[0, :2] = [[0, 0, 10, 10], [0, 0, 6, 10]]  # overlaps of 0.5 and 0.3
    theirs, ours = (
        int(assign(anchors, targets, rule.dense, rule).truth[0, 0]) for rule in (TORCHVISION, MMDET)
    )
    assert (theirs, ours) == (0, 1)


def test_smallest_sides():
    boxes = np.float32([[[0, 0, 5, 0], [0, 0, 5, 1e-4], [0, 0, 5, 1e-3], [0, 0, 5, 0.02]]])
    np.testing.assert_array_equal(sizable(boxes, MMDET.proposal_min_side), [[0, 1, 1, 1]])
    np.testing.assert_array_equal(sizable(boxes, TORCHVISION.proposal_min_side), [[0, 0, 1, 1]])
    np.testing.assert_array_equal(sizable(boxes, TORCHVISION.roi_min_side), [[0, 0, 0, 1]])
    np.testing.assert_array_equal(sizable(boxes, OLD.proposal_min_side), [[1, 1, 1, 1]])
    assert MMDET.roi_min_side is None
    assert TORCHVISION.dense_min_side is None


def test_2_3_keeps_proposals_without_a_side():
    anchors = np.float32([[10, 10, 30, 30], [-30, 10, -10, 30], [40, 40, 60, 60]])
    limits = {"pre_nms": 5, "max_out": 5, "nms_threshold": 0.7}
    counts = {}
    for name, rule in CONVENTIONS.items():
        found = propose(
            (jnp.float32([[2, 1, 0]]),),
            (jnp.zeros((1, 3, 4)),),
            (anchors,),
            CANVAS,
            convention=rule,
            **limits,
        )
        counts[name] = int(found.valid.sum())
    assert counts == {"mmdet": 2, "mmdet-2.3": 3, "torchvision": 2}


def test_2_3_takes_the_best_anchors_with_all_their_classes():
    anchors = np.float32([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [0, 30, 10, 40]])
    probability = np.float32([[0.9, 0.8, 0.06], [0.7, 0.1, 0.1], [0.75, 0.5, 0.1], [0.6, 0.6, 0.6]])
    logits = np.log(probability / (1 - probability))[None]
    given = (logits,), (np.zeros((1, 4, 4), np.float32),), (anchors,), CANVAS
    settings = TestSettings(max_out=9, pre_nms=2)
    ours = retina_detections(*given, settings, MMDET)
    # The two best pairs; and of the two best anchors, the two (levels times pre_nms) best pairs.
    np.testing.assert_allclose(ours.scores[0, :3], [0.9, 0.8, 0], rtol=1e-5)
    old = retina_detections(*given, settings, OLD)
    np.testing.assert_allclose(old.scores[0, :3], [0.9, 0.8, 0], rtol=1e-5)
    ours, old = (
        retina_detections(*given, TestSettings(max_out=9, pre_nms=4), rule) for rule in (MMDET, OLD)
    )
    np.testing.assert_allclose(ours.scores[0, :4], [0.9, 0.8, 0.75, 0.7], rtol=1e-5)
    np.testing.assert_allclose(old.scores[0, :4], [0.9, 0.8, 0.75, 0.7], rtol=1e-5)
    # Two levels: anchor 1's best class is no match for anchor 3's three.
    two = (logits, logits - 9), given[1] * 2, given[2] * 2, CANVAS
    settings = TestSettings(max_out=9, pre_nms=2, score=0.05, nms=0.99)
    ours, old = (retina_detections(*two, settings, rule) for rule in (MMDET, OLD))
    np.testing.assert_allclose(ours.scores[0, :3], [0.9, 0.8, 0], rtol=1e-5)
    np.testing.assert_allclose(old.scores[0, :5], [0.9, 0.8, 0.75, 0.5, 0], rtol=1e-5)


def test_deltas_have_one_limit_or_two():
    deltas = jnp.full((1, 1, 1, 4), -40.0)
    region = Proposals(jnp.float32([[[20, 20, 40, 40]]]), jnp.ones((1, 1)), jnp.ones((1, 1), bool))
    sides = {}
    for name in ("mmdet", "torchvision"):
        rule = dataclasses.replace(CONVENTIONS[name], roi_min_side=None)
        found = roi_detections(
            jnp.float32([[[0.9, 0.1]]]),
            deltas.at[..., :2].set(0.0),
            region,
            CANVAS,
            TestSettings(max_out=1),
            rule,
        )
        sides[name] = float(found.boxes[0, 0, 2] - found.boxes[0, 0, 0])
    assert sides["mmdet"] == pytest.approx(20 * 16 / 1000, rel=1e-4)
    assert sides["torchvision"] == pytest.approx(20 * np.exp(-8), rel=1e-3)


def test_retinanets_losses_by_image():
    anchors = level_anchors(AnchorSettings(2.0), (16,), ((4, 6),), MMDET)[0]
    _, targets, _ = small.batch(count=2, filling=1)
    targets.boxes[0, :3] = anchors[[20, 40, 60]] + 1
    targets.valid[1] = False
    targets.sizes[1] = small.CANVAS
    logits = RNG.normal(size=(3, len(anchors), 3)).astype(np.float32)
    deltas = RNG.normal(size=(3, len(anchors), 4)).astype(np.float32)
    by_image = dataclasses.replace(MMDET, dense_mean="image")
    assigned = assign(anchors, targets, MMDET.dense, MMDET)
    whole = retina_losses((logits,), (deltas,), anchors, assigned, targets, by_image)
    alone = []
    for b in range(2):
        kept = targets._replace(image_valid=np.arange(3) == b)
        found = assign(anchors, kept, MMDET.dense, MMDET)
        alone.append(retina_losses((logits,), (deltas,), anchors, found, kept, MMDET))
    for name in ("cls_loss", "box_loss"):
        wanted = (float(alone[0][name]) + float(alone[1][name])) / 2
        assert float(whole[name]) == pytest.approx(wanted, rel=1e-5)
    assert float(alone[0]["box_loss"]) > 0


def test_the_rpns_normaliser_and_its_smooth_loss():
    anchors = np.float32([[0, 0, 16, 16], [16, 0, 32, 16], [0, 32, 16, 48]])
    _, targets, _ = small.batch(count=1)
    targets.boxes[0, 0] = [1, 0, 17, 16]
    positive = np.array([[True, False, False]])
    assigned = assign(anchors, targets, MMDET.rpn, MMDET)._replace(
        truth=np.zeros((1, 3), np.int32), positive=positive, negative=~positive
    )
    logits, deltas = np.zeros((1, 3), np.float32), np.zeros((1, 3, 4), np.float32)
    deltas[0, 0, 1] = 0.5
    only = Sampled(
        np.array([[0, 0]], np.int32), np.array([[True, False]]), np.array([[True, False]])
    )
    given = logits, deltas, anchors, assigned, only, targets
    ours, theirs = rpn_losses(*given, MMDET), rpn_losses(*given, TORCHVISION)
    # One positive, no negative: it counts as one in mmdetection.
    assert float(ours["rpn_cls_loss"]) == pytest.approx(np.log(2) / 2)
    assert float(theirs["rpn_cls_loss"]) == pytest.approx(np.log(2))
    assert float(ours["rpn_box_loss"]) == pytest.approx((1 / 16 + 0.5) / 2)
    smooth = (1 / 16) ** 2 * 9 / 2 + 0.5 - 1 / 18
    assert float(theirs["rpn_box_loss"]) == pytest.approx(smooth)


def test_the_background_first_or_last_is_one_detector():
    ours = small.build("faster_rcnn")
    theirs = small.build("faster_rcnn", convention="torchvision", class_agnostic=False)
    K = small.NUM_CLASSES
    assert ours.roi.box.kernel.shape == (16, 4 * K)
    assert theirs.roi.box.kernel.shape == (16, 4 * K + 4)
    theirs.roi.convention = ours.roi.convention
    theirs.roi.sampling = ours.roi.sampling
    for name in ("fc1", "fc2"):
        getattr(theirs.roi, name).kernel[...] = getattr(ours.roi, name).kernel[...]
    theirs.roi.cls.kernel[...] = jnp.roll(ours.roi.cls.kernel[...], 1, axis=1)
    theirs.roi.box.kernel[...] = jnp.pad(ours.roi.box.kernel[...], ((0, 0), (4, 0)))
    maps = tuple(
        jnp.asarray(RNG.normal(size=(1, 16 // s, 24 // s, 16)), jnp.float32) for s in (1, 2, 4, 8)
    )
    boxes = jnp.float32([[[3, 5, 30, 40], [10, 10, 60, 50]]])
    for mine, other in zip(
        ours.roi(maps, ours.spec, boxes), theirs.roi(maps, theirs.spec, boxes), strict=True
    ):
        np.testing.assert_allclose(mine, other, atol=1e-6)


def test_one_box_for_all_classes():
    detector = small.build("faster_rcnn", class_agnostic=True)
    assert detector.roi.box.kernel.shape == (16, 4)
    logits = RNG.normal(size=(1, 3, 4)).astype(np.float32)
    deltas = RNG.normal(size=(1, 3, 1, 4)).astype(np.float32)
    regions = Proposals(
        jnp.float32([[[0, 0, 20, 20], [30, 0, 50, 20], [0, 30, 20, 50]]]),
        jnp.ones((1, 3)),
        jnp.array([[True, True, False]]),
    )
    probability = jax.nn.softmax(logits)
    given = regions, CANVAS, TestSettings(score=0.0, max_out=9), MMDET
    one = roi_detections(probability, deltas, *given)
    each = roi_detections(probability, np.repeat(deltas, 3, axis=2), *given)
    for mine, other in zip(one, each, strict=True):
        np.testing.assert_array_equal(mine, other)
    # Missing regions have no score in any class.
    assert int(one.valid.sum()) == 2 * 3
    scores = roi_unsuppressed(probability, deltas, regions, CANVAS, MMDET)[1]
    np.testing.assert_array_equal(scores[0, :2], probability[0, :2, :-1])
    assert not scores[0, 2].any()


def test_the_paths_of_a_class_agnostic_loss():
    boxes = jnp.float32([[[0, 0, 20, 20], [30, 0, 50, 20]]])
    regions = Regions(
        boxes,
        jnp.int32([[1, 3]]),
        boxes + 1,
        jnp.array([[True, False]]),
        jnp.array([[True, True]]),
    )
    deltas = RNG.normal(size=(1, 2, 1, 4)).astype(np.float32)
    got = roi_losses(np.zeros((1, 2, 4), np.float32), deltas, regions, TORCHVISION)
    off = np.abs(
        deltas[0, 0, 0] - oracles.encode(boxes[0, 0], boxes[0, 0] + 1, (0.1, 0.1, 0.2, 0.2))
    )
    smooth = np.where(off < 1 / 9, off**2 * 4.5, off - 1 / 18).sum()
    assert float(got["roi_box_loss"]) == pytest.approx(smooth / 2, rel=1e-5)


def test_classes_by_other_numbers():
    settings = {**small.SETTINGS["retinanet"], "head_classes": 7, "class_ids": (2, 6, 4)}
    detector = models.init_detector(settings, 3, 0)
    assert detector.head.cls.kernel.shape[-1] == 6 * 7
    _, targets, _ = small.batch()
    np.testing.assert_array_equal(
        detector.to_head(targets).labels, np.array([2, 6, 4])[targets.labels]
    )
    found = Detections(
        np.arange(20, dtype=np.float32).reshape(1, 5, 4),
        np.float32([[0.9, 0.8, 0.7, 0.6, 0]]),
        np.int32([[6, 3, 2, 4, 0]]),
        np.array([[True, True, True, True, False]]),
    )
    got = detector.from_head(found)
    np.testing.assert_array_equal(got.valid, [[True, True, True, False, False]])
    np.testing.assert_array_equal(got.labels[0, :3], [1, 0, 2])
    np.testing.assert_array_equal(got.scores, np.float32([[0.9, 0.7, 0.6, 0, 0]]))
    np.testing.assert_array_equal(got.boxes[0, 1], found.boxes[0, 2])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"class_ids": (0, 1)}, "class_ids"),
        ({"class_ids": (0, 1, 3)}, "class_ids"),
        ({"class_ids": (0, 1, 1)}, "class_ids"),
        ({"class_ids": (0, 1, 2.5)}, "class_ids must be int"),
        ({"detector": "faster_rcnn", "roi_sampling": -1}, "roi_sampling"),
        ({"convention": "mmdet-2.9"}, "mmdet-2.3, torchvision"),
    ],
)
def test_bad_settings_are_named(changes, said):
    with pytest.raises(UserError, match=said):
        models.abstract_detector({"detector": "retinanet", **changes}, 3)


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("name", small.DETECTORS)
def test_library_sizes_are_defaults_that_a_user_may_change(convention, name):
    build = models.abstract_detector
    detector = build({"detector": name, "convention": convention}, 3)
    theirs = convention == "torchvision"
    if name == "retinanet":
        assert detector.settings.test.max_out == (300 if theirs else 100)
        assert detector.spec.kinds[-1] == ("conv_p5" if theirs else "conv_c5")
        assert detector.neck.extra_relu == theirs
        assert detector.settings.test.pre_nms == 1000
        chosen = build(
            {"detector": name, "convention": convention, "extra": "conv_c5", "test": {"nms": 0.6}},
            3,
        )
        assert chosen.spec.kinds[-1] == "conv_c5"
        assert (chosen.settings.test.max_out, chosen.settings.test.nms) == (
            detector.settings.test.max_out,
            0.6,
        )
    else:
        assert detector.settings.proposals.max_out == (2000 if theirs else 1000)
        assert detector.roi.sampling == (2 if theirs else 0)
        other = 0 if theirs else 3  # 0, as many as a bin has cells, is a choice like any number
        fixed = build({"detector": name, "convention": convention, "roi_sampling": other}, 3)
        assert fixed.roi.sampling == other
    assert set(LIBRARY_SETTINGS) == {("torchvision", d) for d in small.DETECTORS}


def test_torchvision_trains_no_norm_of_its_weights():
    for convention, trained in (("mmdet", True), ("torchvision", False)):
        detector = models.abstract_detector({"detector": "retinanet", "convention": convention}, 3)
        _, chosen, _ = nnx.split(detector, detector.is_trained, ...)
        names = [path for path, _ in nnx.to_flat_state(chosen)]
        assert any(path[-1] == "scale" for path in names) == trained
        assert sum(path[-1] == "kernel" for path in names) > 40
    settings = {"detector": "retinanet", "convention": "torchvision", "backbone": {"norm": "gn"}}
    detector = models.abstract_detector(settings, 3)
    _, chosen, _ = nnx.split(detector, detector.is_trained, ...)
    assert any(path[-1] == "scale" for path, _ in nnx.to_flat_state(chosen))


@pytest.mark.parametrize(
    ("name", "classes", "parameters"),
    [("retinanet", 91, 34_068_119), ("faster_rcnn", 90, 41_808_406)],
)
def test_full_size_has_torchvisions_parameter_count(name, classes, parameters):
    detector = models.abstract_detector({"detector": name, "convention": "torchvision"}, classes)
    flat = nnx.to_flat_state(nnx.state(detector, nnx.Param))
    assert sum(int(np.prod(leaf.shape)) for _, leaf in flat) == parameters
