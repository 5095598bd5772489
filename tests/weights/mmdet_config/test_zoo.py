"""Checkpoints of other models of mmdetection: what a teacher can use, and what a refusal says."""

from pathlib import Path

import pytest

from drkd_jax.errors import UserError
from drkd_jax.weights.libraries.understanding import understand
from tests.weights.mmdet_config.configs import FASTER_RCNN, RETINANET, read
from tests.weights.small import foreign


def shapes_of(name):
    return {key: value.shape for key, value in foreign(name)[1].items()}


def test_what_a_loss_counts_is_no_weight():
    """GHM-C and GHM-R keep histograms of gradients as buffers."""
    shapes = shapes_of("mmdet retinanet")
    shapes |= {"bbox_head.loss_cls.edges": (31,), "bbox_head.loss_bbox.acc_sum": (10,)}
    text = RETINANET.replace("type='FocalLoss'", "type='GHMC', bins=30, momentum=0.75")
    found = understand(shapes, {"cfg": text}, Path("x.pth"), {})
    assert found.report.whole, found.report.faults()
    assert found.spec.part == "detector"
    assert found.report.skipped["bbox_head.loss_cls.edges"] == "what a loss counts in training"


def test_the_settings_of_masks_do_not_concern_boxes():
    """A PointRend's `test_cfg.rcnn` says how its masks are subdivided."""
    masks = "rcnn=dict(subdivision_steps=5, subdivision_num_points=784, scale_factor=2, "
    found = read("mmdet faster_rcnn", FASTER_RCNN.replace("rcnn=dict(max", f"{masks}max"))
    assert found.spec.part == "detector"
    points = shapes_of("mmdet faster_rcnn") | {"roi_head.point_head.fcs.0.conv.bias": (256,)}
    assert understand(points, {}, Path("x.pth"), {}).report.whole
    with pytest.raises(UserError, match=r"test_cfg\.rpn\.scale_factor = 2"):
        read("mmdet faster_rcnn", FASTER_RCNN.replace("nms_pre=1000", "scale_factor=2"))


def test_a_head_of_another_kind_may_count_otherwise():
    """A Seesaw loss has two outputs more than classes: no detector, and a teacher all the same."""
    text = FASTER_RCNN.replace("'CrossEntropyLoss', use_sigmoid=False", "'SeesawLoss'")
    text = text.replace("num_classes=3", "num_classes=2")
    with pytest.raises(UserError, match=r"SeesawLoss.*A teacher can use its backbone and pyramid"):
        read("mmdet faster_rcnn", text)
    found = read("mmdet faster_rcnn", text, heads=False)
    assert (found.spec.part, found.report.whole) == ("pyramid", True)
    # Backbone and pyramid still have to be those of the arrays.
    with pytest.raises(UserError, match=r"two models: channels 32 \(its arrays: 16\)"):
        read("mmdet faster_rcnn", text.replace("num_outs=5, out_channels=16", "out_channels=32"))


def test_group_norms_in_an_rpn_leave_backbone_and_pyramid():
    shapes = shapes_of("mmdet pyramid")
    shapes |= {f"rpn_head.cls_convs.0.gn.{leaf}": (16,) for leaf in ("weight", "bias")}
    shapes["rpn_head.cls_convs.0.conv.weight"] = (16, 16, 3, 3)
    found = understand(shapes, {}, Path("x.pth"), {}, heads=False)
    assert (found.spec.part, found.report.whole) == ("pyramid", True)
    shapes |= {f"neck.fpn_convs.0.gn.{leaf}": (16,) for leaf in ("weight", "bias")}
    with pytest.raises(UserError, match=r"neck\.fpn_convs\.0\.gn\.weight: a norm in the pyramid"):
        understand(shapes, {}, Path("x.pth"), {}, heads=False)


def test_a_detr_is_no_detector_of_mmdetection_1():
    """Its head has an `fc_cls` as a two-stage detector's had; only the latter has an RPN."""
    shapes = shapes_of("mmdet pyramid") | {"bbox_head.fc_cls.weight": (80, 256)}
    assert understand(shapes, {}, Path("x.pth"), {}, heads=False).spec.part == "pyramid"
    with pytest.raises(UserError, match=r"mmdetection 1\.x"):
        understand(shapes | {"rpn_head.rpn_cls.weight": (3, 16, 1, 1)}, {}, Path("x.pth"), {})


KINDS = "model = dict(backbone=dict(type='{}', depth=18), neck=dict(type='{}'))"


@pytest.mark.parametrize(
    ("key", "other", "backbone", "neck", "named"),
    [
        ("backbone.layer2.0.conv1.weight", None, "HRNet", "HRFPN", "backbone.type = 'HRNet'"),
        ("neck.lateral_convs.0.conv.weight", "neck.lateral_convs.0.weight", "ResNet", "FPG", ""),
        ("neck.fpn_convs.0.conv.weight", None, "ResNet", "NASFPN", ""),
    ],
)
def test_another_backbone_or_neck_is_refused_by_its_name(key, other, backbone, neck, named):
    shapes = shapes_of("mmdet pyramid")
    value = shapes.pop(key)
    if other:
        shapes[other] = value
    with pytest.raises(UserError) as raised:
        understand(shapes, {"cfg": KINDS.format(backbone, neck)}, Path("x.pth"), {})
    words = str(raised.value)
    assert "its own config makes it what is not built here" in words
    assert f"model.neck.type = '{neck}' (FPN can be built here)" in words
    assert named in words


@pytest.mark.parametrize("loss", ["SeesawLoss", "MyLoss"])
def test_a_loss_of_a_dense_head_may_have_scores_of_its_own(loss):
    text = RETINANET.replace("type='FocalLoss'", f"type='{loss}'")
    with pytest.raises(UserError, match=rf"loss_cls\.type = '{loss}'"):
        read("mmdet retinanet", text)


def test_the_library_that_a_type_belongs_to_is_no_setting():
    """mmengine's `_scope_` says where a type's name is looked up."""
    text = RETINANET.replace("num_stages=4", "_scope_='mmdet', num_stages=4")
    assert read("mmdet retinanet", text).settings == read("mmdet retinanet", RETINANET).settings


def test_a_neck_that_is_no_fpn_leaves_the_backbone_to_a_student():
    """Group norms of another neck are no norms of a pyramid."""
    shapes = {k: v for k, v in shapes_of("mmdet pyramid").items() if k.startswith("backbone.")}
    shapes |= {"neck.extra_convs.0.conv.weight": (16, 256, 3, 3)}
    shapes |= {f"neck.extra_convs.0.gn.{leaf}": (16,) for leaf in ("weight", "bias")}
    found = understand(shapes, {}, Path("x.pth"), {})
    assert (found.spec.part, found.report.whole) == ("backbone", True)
