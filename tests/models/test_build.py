from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from drkd_jax import models
from drkd_jax.errors import UserError
from drkd_jax.frozen import Frozen
from drkd_jax.models.conventions import MMDET
from drkd_jax.models.initializers import kaiming_normal, xavier_uniform
from drkd_jax.models.roi_head import RoIHead
from drkd_jax.models.settings import FasterRCNNSettings
from drkd_jax.types import FeatureSpec
from tests.models import small


def count(detector, kind=nnx.Param):
    flat = nnx.to_flat_state(nnx.state(detector, kind))
    return sum(math.prod(leaf.shape) for _, leaf in flat)


@pytest.mark.parametrize(
    ("name", "parameters"), [("retinanet", 37_968_692), ("faster_rcnn", 41_753_056)]
)
def test_full_size_has_mmdetections_parameter_count(name, parameters):
    detector = models.abstract_detector({"detector": name}, 80)
    assert count(detector) == parameters
    # ResNet-50 has 53 norms with 26,560 channels in all: a mean and a variance each.
    assert count(detector, Frozen) == 2 * 26_560


@pytest.mark.parametrize(
    ("depth", "groups", "group_width", "parameters"),
    [
        # torchvision's numbers, less the classifier on 512 or 2048 features.
        (18, 1, 64, 11_689_512 - 513_000),
        (34, 1, 64, 21_797_672 - 513_000),
        (50, 1, 64, 25_557_032 - 2_049_000),
        (101, 1, 64, 44_549_160 - 2_049_000),
        (152, 1, 64, 60_192_808 - 2_049_000),
        (50, 32, 4, 25_028_904 - 2_049_000),
        (101, 32, 8, 88_791_336 - 2_049_000),
        (101, 64, 4, 83_455_272 - 2_049_000),
        # Counted in mmdetection 3.3.0: its ResNeXt with groups=32, base_width=4.
        (101, 32, 4, 42_128_704),
    ],
)
def test_backbones_have_their_librarys_parameters(depth, groups, group_width, parameters):
    backbone = {"depth": depth, "groups": groups, "group_width": group_width}
    detector = models.abstract_detector({"detector": "retinanet", "backbone": backbone}, 80)
    assert count(detector.backbone) == parameters


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"detector": "yolo"}, "retinanet, faster_rcnn"),
        ({"chanels": 3}, "'chanels'.*channels"),
        ({"backbone": {"depht": 3}}, "'backbone.depht'.*depth"),
        ({"backbone": {"depth": 19}}, "backbone.depth is 19.*18, 26"),
        ({"backbone": {"depth": 18, "groups": 2}}, "backbone.groups"),
        ({"backbone": {"frozen_stages": 5}}, "backbone.frozen_stages"),
        ({"backbone": {"depth": 18, "dcn": "v1"}}, "backbone.dcn"),
        ({"backbone": {"dcn": "v3"}}, "backbone.dcn is 'v3'"),
        ({"backbone": {"norm_batch": 2}}, "backbone.norm_batch"),
        ({"backbone": {"norm": "bn", "eps": 0}}, "backbone.eps"),
        ({"channels": "many"}, "channels must be int"),
        ({"channels": True}, "channels must be int"),
        ({"anchors": 3}, "anchors must hold settings"),
        ({"anchors": {"ratios": 1.0}}, "anchors.ratios must be a list"),
        ({"anchors": {"ratios": []}}, "anchors.ratios"),
        ({"convention": "detectron"}, "'detectron'.*mmdet"),
        ({"min_level": 6}, "min_level 6"),
        ({"extra": "conv"}, "extra is 'conv'"),
        ({"fc": 12}, "'fc'"),
        ({"head_norm": "bn"}, "head_norm is 'bn'; known: , gn"),
        ({"box_loss": "l2"}, "box_loss is 'l2'; known: smooth_l1, giou"),
        ({"detector": "faster_rcnn", "rpn_convs": 0}, "rpn_convs is 0; it must be at least 1"),
        ({"detector": "faster_rcnn", "roi_convs": -1}, "roi_convs is -1"),
        ({"detector": "faster_rcnn", "roi_fcs": 3}, "roi_fcs is 3; it must be at most 2"),
        ({"backbone": {"eps": math.nan}}, "backbone.eps must be a finite number"),
        ({"anchors": {"ratios": (1.0, math.inf)}}, "anchors.ratios must be a finite number"),
        ({"test": {"score": -1.0}}, "test.score is -1.0; it must be at least 0"),
        ({"test": {"score": math.nan}}, "test.score must be a finite number"),
        ({"test": {"nms": 1.5}}, "test.nms is 1.5; it must be at most 1"),
        ({"detector": "faster_rcnn", "proposals": {"nms": -0.7}}, "proposals.nms is -0.7"),
        ({"detector": "faster_rcnn", "sampler": {"rpn_positive": -1.0}}, "sampler.rpn_positive"),
        ({"detector": "faster_rcnn", "sampler": {"roi_positive": 25}}, "sampler.roi_positive"),
    ],
)
def test_bad_settings_are_named(changes, said):
    with pytest.raises(UserError, match=said):
        models.abstract_detector({"detector": "retinanet", **changes}, 3)


def test_no_class_is_refused():
    with pytest.raises(UserError, match="num_classes"):
        models.abstract_detector({"detector": "retinanet"}, 0)


def test_none_leaves_a_group_of_settings_at_its_default():
    detector = models.abstract_detector({"detector": "retinanet", "anchors": None}, 3)
    assert detector.settings.anchors.scale == 4.0


def test_dense_heads_start_as_the_convention_says():
    head = small.build("retinanet", head_std=0.01).head
    np.testing.assert_allclose(head.cls.bias[...], -4.59512, rtol=1e-5)
    assert np.std(head.cls.kernel[...]) == pytest.approx(0.01, rel=0.05)
    assert np.all(np.asarray(head.box.bias[...]) == 0)
    roi = small.build("faster_rcnn", fc=256).roi
    assert np.std(roi.cls.kernel[...]) == pytest.approx(0.01, rel=0.1)
    assert np.std(roi.box.kernel[...]) == pytest.approx(0.001, rel=0.1)


def test_other_layers_start_by_their_fans():
    """Kaiming's by the outputs, Xavier's by inputs and outputs."""
    shape = 3, 3, 64, 16
    key = jax.random.key(0)
    for init, variance in ((kaiming_normal(), 2 / (9 * 16)), (xavier_uniform(), 2 / (9 * 80))):
        drawn = np.asarray(init(key, shape))
        assert drawn.std() == pytest.approx(variance**0.5, rel=0.02)  # measured: 0.7 %
        assert abs(drawn.mean()) < 0.03 * variance**0.5
    assert np.abs(drawn).max() <= (3 * variance) ** 0.5  # uniform


def test_the_seed_fixes_every_value():
    a, b, c = (
        nnx.to_flat_state(nnx.state(models.init_detector(small.SETTINGS["retinanet"], 3, seed)))
        for seed in (1, 1, 2)
    )
    assert all(np.array_equal(x[...], y[...]) for (_, x), (_, y) in zip(a, b, strict=True))
    kernels = [
        np.array_equal(x[...], y[...])
        for (path, x), (_, y) in zip(a, c, strict=True)
        if path[-1] == "kernel"
    ]
    assert kernels
    assert not any(kernels)


@pytest.mark.parametrize("frozen", [0, 1, 2, 4])
def test_frozen_stages_are_not_trained_and_get_no_gradient(frozen):
    backbone = {"depth": 18, "width": 4, "norm": "frozen_bn", "frozen_stages": frozen}
    detector = small.build("retinanet", backbone=backbone)
    _, trained, rest = nnx.split(detector, detector.is_trained, ...)
    names = [path for path, _ in nnx.to_flat_state(trained)]
    stages = {path[2] for path in names if path[:2] == ("backbone", "stages")}
    assert stages == set(range(frozen, 4))
    assert any(path[:2] == ("backbone", "stem") for path in names) == (frozen == 0)
    assert not any(path[-1] in ("mean", "var") for path in names)
    assert any(path[-1] == "scale" for path in names) == (frozen < 4)
    assert {"mean", "var"} <= {path[-1] for path, _ in nnx.to_flat_state(rest)}


def test_an_untrained_backbone_is_not_frozen_by_default():
    assert models.abstract_detector({"detector": "retinanet"}, 3).backbone.num_frozen == 1
    detector = models.abstract_detector({"detector": "retinanet", "backbone": {"norm": "gn"}}, 3)
    assert detector.backbone.num_frozen == 0


def test_parameters_stay_float32_in_bfloat16():
    detector = models.abstract_detector({"detector": "retinanet"}, 3, dtype=jnp.bfloat16)
    kinds = {leaf.dtype for _, leaf in nnx.to_flat_state(nnx.state(detector))}
    assert kinds == {jnp.dtype(jnp.float32)}


def test_a_region_s_level_goes_by_the_finest_one_there_is():
    """Up to twice 14 cells per side are read from the finest level, here P3."""
    settings = FasterRCNNSettings(channels=1, fc=1, min_level=3, max_level=5, roi_sampling=1)
    head = RoIHead(settings, 1, MMDET, rngs=nnx.Rngs(0), dtype=jnp.dtype(jnp.float32))
    spec = FeatureSpec((1,) * 3, (8, 16, 32), ("lateral",) * 3)
    maps = tuple(jnp.full((1, 512 // s, 512 // s, 1), s, jnp.float32) for s in spec.strides)
    sides = 14 * 8 * np.float32([0.5, 1.9, 2.1, 3.9, 4.1])
    boxes = np.stack([0 * sides, 0 * sides, sides, sides], axis=-1)[None]
    pooled = jax.jit(lambda boxes: head.pool(maps, spec, boxes))(boxes)
    np.testing.assert_array_equal(pooled[0, :, 0, 0, 0], [8, 8, 16, 16, 32])
