from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from drkd_jax import models
from drkd_jax.errors import UserError
from drkd_jax.models.norm import Statistic
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
    assert count(detector, Statistic) == 2 * 26_560


def test_resnext_101_64x4d_has_its_backbone_parameters():
    backbone = {"depth": 101, "groups": 64, "group_width": 4}
    detector = models.abstract_detector({"detector": "retinanet", "backbone": backbone}, 80)
    # torchvision's resnext101_64x4d without its classifier of 2048 x 1000 + 1000.
    assert count(detector.backbone) == 83_455_272 - 2_049_000


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"detector": "yolo"}, "retinanet, faster_rcnn"),
        ({"chanels": 3}, "'chanels'.*channels"),
        ({"backbone": {"depht": 3}}, "'backbone.depht'.*depth"),
        ({"backbone": {"depth": 19}}, "backbone.depth is 19.*18, 34"),
        ({"backbone": {"depth": 18, "groups": 2}}, "backbone.groups"),
        ({"backbone": {"frozen_stages": 5}}, "backbone.frozen_stages"),
        ({"channels": "many"}, "channels must be int"),
        ({"channels": True}, "channels must be int"),
        ({"anchors": 3}, "anchors must hold settings"),
        ({"anchors": {"ratios": 1.0}}, "anchors.ratios must be a list"),
        ({"anchors": {"ratios": []}}, "anchors.ratios"),
        ({"convention": "detectron"}, "'detectron'.*mmdet"),
        ({"min_level": 6}, "min_level 6"),
        ({"extra": "conv"}, "extra is 'conv'"),
        ({"fc": 12}, "'fc'"),
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
