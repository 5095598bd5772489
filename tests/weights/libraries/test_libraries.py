"""The names and shapes of the libraries' own models, complete, in both directions."""

import gzip
import json
import re
from pathlib import Path

import pytest

from drkd_jax.data.sources.classes import COCO_CATEGORIES
from drkd_jax.errors import UserError
from drkd_jax.models.conventions import CAFFE2_PIXELS, CAFFE_PIXELS, Pixels
from drkd_jax.weights.libraries.key_report import their_shape
from drkd_jax.weights.libraries.understanding import understand
from tests.weights.small import foreign

FIXTURES = Path(__file__).parents[2] / "fixtures" / "weights"


def shapes_of(library):
    found = json.loads(gzip.decompress((FIXTURES / f"{library}_shapes.json.gz").read_bytes()))
    return {
        name: {key: tuple(shape) for key, shape in keys.items()} for name, keys in found.items()
    }


TORCHVISION = shapes_of("torchvision")
MMDET = shapes_of("mmdet")
PAPER_S_TEACHER = "cascade-mask-rcnn_x101-32x4d-dconv-c3-c5_fpn_1x_coco"

# Backbone as (depth, groups, width of a group, deformable).
BACKBONES = {
    "resnet18": (18, 1, 64, ""),
    "resnet34": (34, 1, 64, ""),
    "resnet50": (50, 1, 64, ""),
    "resnet101": (101, 1, 64, ""),
    "resnet152": (152, 1, 64, ""),
    "resnext50_32x4d": (50, 32, 4, ""),
    "resnext101_32x8d": (101, 32, 8, ""),
    "resnext101_64x4d": (101, 64, 4, ""),
}


def check_whole(found, shapes):
    """Checks that each key is used or skipped, and each array of ours maps back to the same key."""
    report = found.report
    assert report.whole, report.faults()
    assert {*report.used, *report.skipped} == set(shapes)
    assert not {*report.used} & {*report.skipped}
    assert [entry.ours for entry in found.table] == list(found.used.values())
    for entry, key in zip(found.table, found.used, strict=True):
        assert key in (entry.theirs, *entry.older)


@pytest.mark.parametrize("name", sorted(TORCHVISION))
def test_every_key_of_torchvision_is_accounted_for(name):
    shapes = TORCHVISION[name]
    found = understand(shapes, {}, Path(f"{name}.pth"), {})
    check_whole(found, shapes)
    backbone = found.settings["backbone"]
    if name in BACKBONES:
        values = (backbone["depth"], backbone["groups"], backbone.get("group_width", 64))
        assert values == BACKBONES[name][:3]
        assert found.spec.part == "backbone"
        assert set(found.report.skipped.values()) == {
            "a counter of torch's BatchNorm",
            "the ImageNet classifier",
        }


def test_torchvision_s_detectors_are_what_they_are():
    found = understand(TORCHVISION["fasterrcnn_resnet50_fpn"], {}, Path("x.pth"), {})
    settings = found.settings
    assert (found.spec.part, settings["detector"]) == ("detector", "faster_rcnn")
    assert (settings["convention"], settings["extra"], settings["fc"]) == (
        *("torchvision", "pool"),
        1024,
    )
    assert (found.spec.num_classes, settings["head_classes"]) == (80, 90)
    assert settings["class_ids"] == tuple(category.id - 1 for category in COCO_CATEGORIES)

    found = understand(TORCHVISION["retinanet_resnet50_fpn"], {}, Path("x.pth"), {})
    settings = found.settings
    assert (settings["detector"], settings["extra"], settings["head_classes"]) == (
        *("retinanet", "conv_p5"),
        91,
    )
    assert settings["class_ids"] == tuple(category.id for category in COCO_CATEGORIES)

    found = understand(TORCHVISION["maskrcnn_resnet50_fpn"], {}, Path("x.pth"), {})
    reasons = list(found.report.skipped.values())
    assert reasons.count("the mask head: masks are not predicted here") == 12

    found = understand(TORCHVISION["retinanet_resnet50_fpn_v2"], {}, Path("x.pth"), {})
    check_whole(found, TORCHVISION["retinanet_resnet50_fpn_v2"])
    settings = found.settings
    assert (found.spec.part, settings["extra"], settings["head_norm"]) == (
        *("detector", "conv_c5"),
        "gn",
    )
    assert settings["box_loss"] == "giou"
    key = "head.regression_head.conv.3.1.weight"
    assert found.report.used[key] == "head.box_norms.3.scale"


@pytest.mark.parametrize("kind", ["faster", "mask"])
def test_v2_has_folded_norms_in_pyramid_and_regions(kind):
    shapes = TORCHVISION[f"{kind}rcnn_resnet50_fpn_v2"]
    found = understand(shapes, {}, Path("x_v2_coco-d.pth"), {})
    check_whole(found, shapes)
    settings = found.settings
    assert (found.spec.part, settings["extra"], settings["backbone"]["eps"]) == (
        *("detector", "pool"),
        1e-5,
    )
    layers = tuple(settings[key] for key in ("rpn_convs", "roi_convs", "roi_fcs", "fc"))
    assert layers == (2, 4, 1, 1024)
    assert len(found.folds) == 12
    for key, ours in {
        "backbone.fpn.inner_blocks.3.1.running_var": "neck.laterals.3.bias",
        "roi_heads.box_head.2.1.running_var": "roi.convs.2.bias",
        "roi_heads.box_head.5.weight": "roi.fc1.kernel",
        "rpn.head.conv.1.0.weight": "rpn.more_convs.0.kernel",
    }.items():
        assert found.report.used[key] == ours


def test_torchvision_s_anchors_are_pixels_on_the_finest_level_whatever_its_stride():
    shapes = TORCHVISION["retinanet_resnet50_fpn"]
    usual = understand(shapes, {}, Path("x.pth"), {}).settings["anchors"]
    assert usual == {"scale": 4.0, "octaves": 3}
    # Of resnet_fpn_backbone's own levels, P2 to P6, with RetinaNet's own sizes: 32, 40, 50, ...
    pyramid = TORCHVISION["fasterrcnn_resnet50_fpn"]
    wider = {key: shape for key, shape in shapes.items() if not key.startswith("backbone.fpn.")}
    wider |= {key: shape for key, shape in pyramid.items() if key.startswith("backbone.fpn.")}
    found = understand(wider, {}, Path("x.pth"), {})
    check_whole(found, wider)
    assert (found.settings["min_level"], found.settings["anchors"]["scale"]) == (2, 8.0)
    assert any("anchors.scale = 8.0: torchvision's own" in line for line in found.spec.lines({}))
    two_stage = understand(pyramid, {}, Path("x.pth"), {})
    assert two_stage.settings["anchors"] == {"scale": 8.0}


@pytest.mark.parametrize("library", ["torchvision", "mmdet"])
def test_six_anchors_a_cell_may_be_of_two_ratios(library):
    theirs = foreign(f"{library} retinanet")[1]
    shapes = {key: array.shape for key, array in theirs.items()}
    outputs = [key for key in shapes if re.search(r"cls_logits|bbox_reg\.|retina_(cls|reg)", key)]
    assert len(outputs) == 4
    for key in outputs:
        shapes[key] = (shapes[key][0] // 9 * 6, *shapes[key][1:])
    said = {"anchors": {"ratios": (0.5, 2.0), "octaves": 3}}
    found = understand(shapes, {}, Path("x.pth"), said)
    assert found.report.whole
    assert found.settings["anchors"] | said["anchors"] == found.settings["anchors"]
    assert found.spec.assumed["anchors.octaves"].value == 2  # of three ratios, were nothing said
    said["anchors"]["octaves"] = 2
    assert not understand(shapes, {}, Path("x.pth"), said).report.whole


def test_a_cascade_of_a_box_for_every_class_is_a_backbone_and_a_pyramid():
    shapes = {key: array.shape for key, array in foreign("mmdet cascade_rcnn")[1].items()}
    for stage in range(3):
        key = f"roi_head.bbox_head.{stage}.fc_reg"
        shapes |= {f"{key}.weight": (12, 24), f"{key}.bias": (12,)}
    found = understand(shapes, {}, Path("x.pth"), {})
    check_whole(found, shapes)
    assert found.spec.part == "pyramid"


def test_fcos_is_a_backbone_and_a_pyramid():
    shapes = {
        key: shape
        for key, shape in TORCHVISION["retinanet_resnet50_fpn"].items()
        if key.startswith("backbone.")
    }
    for tower, last in (("classification", "cls_logits"), ("regression", "bbox_reg")):
        head = f"head.{tower}_head"
        shapes |= {f"{head}.conv.0.weight": (256, 256, 3, 3), f"{head}.conv.1.weight": (256,)}
        shapes |= {f"{head}.{last}.weight": (91 if last == "cls_logits" else 4, 256, 3, 3)}
    shapes |= {"head.regression_head.bbox_ctrness.weight": (1, 256, 3, 3)}
    found = understand(shapes, {}, Path("fcos_resnet50_fpn_coco-99b0c9b7.pth"), {})
    check_whole(found, shapes)
    assert (found.spec.part, found.settings["extra"]) == ("pyramid", "conv_p5")
    assert found.settings["backbone"]["eps"] == 1e-5  # torchvision keeps 0 for its RCNNs


@pytest.mark.parametrize(
    ("name", "eps"),
    [
        ("fasterrcnn_resnet50_fpn_coco-258fb6c6.pth", 0.0),
        ("retinanet_resnet50_fpn_coco-eeacb38b.pth", 0.0),
        ("retinanet_resnet50_fpn_v2_coco-5905b1c5.pth", 1e-5),
        ("mine.pth", 1e-5),
    ],
)
def test_the_eps_of_torchvision_s_first_coco_files_is_zero(name, eps):
    found = understand(TORCHVISION["retinanet_resnet50_fpn"], {}, Path(name), {})
    assert found.settings["backbone"]["eps"] == eps
    assert any(f"backbone.eps = {eps}" in line for line in found.spec.lines({}))
    asked = {"backbone": {"eps": 0.001}}
    found = understand(TORCHVISION["retinanet_resnet50_fpn"], {}, Path(name), asked)
    assert found.settings["backbone"]["eps"] == 0.001
    assert any("backbone.eps = 0.001: as asked for" in line for line in found.spec.lines(asked))


OLD = "img_norm_cfg = dict(\n    mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)"
NEW = """data_preprocessor=dict(bgr_to_rgb=False, mean=[
    103.53,
    116.28,
    123.675,
], pad_size_divisor=32, std=[57.375, 57.12, 58.395])"""
RGB = "model = dict(data_preprocessor=dict(mean=[1, 2, 3], std=[4, 5, 6], bgr_to_rgb=True))"


@pytest.mark.parametrize(
    ("name", "meta", "pixels", "known"),
    [
        ("faster_rcnn_r50_fpn_1x_coco-1.pth", {}, Pixels(), "mmdetection's own"),
        ("mask_rcnn_r50_fpn_gn-all_2x_coco-2.pth", {}, CAFFE_PIXELS, "the file's name"),
        ("mask_rcnn_x101_32x8d_fpn_1x_coco-3.pth", {}, CAFFE2_PIXELS, "the file's name"),
        ("x.pth", {"config": OLD}, CAFFE_PIXELS, "the config in the file"),
        ("x.pth", {"cfg": NEW}, CAFFE2_PIXELS, "the config in the file"),
        (
            "x_gn-all.pth",
            {"cfg": RGB},
            Pixels((1.0, 2.0, 3.0), (4.0, 5.0, 6.0)),
            "the config in the file",
        ),
    ],
)
def test_what_mmdetection_s_networks_read(name, meta, pixels, known):
    found = understand(MMDET["retinanet_r50_fpn_1x_coco"], meta, Path(name), {}).spec
    assert found.pixels[0] == pixels
    assert any(line.startswith("  data.mean = ") and known in line for line in found.lines({}))
    asked = {"data": {"channels": "rgb"}}
    assert "  data.channels = rgb: as asked for" in found.lines(asked)
    assert found.data({"channels": "rgb"})["mean"] == pixels.mean
    with pytest.raises(UserError, match=r"data.colour is not one of mean, std, channels, resize"):
        found.data({"colour": 1})


def test_regions_linear_layer_has_the_same_size_both_ways():
    assert their_shape("regions", (7 * 7 * 256, 1024)) == (1024, 12544)
    assert their_shape("conv", (3, 3, 4, 256)) == (256, 4, 3, 3)


@pytest.mark.parametrize("name", sorted(MMDET))
def test_every_key_of_mmdetection_is_accounted_for(name):
    shapes = MMDET[name]
    found = understand(shapes, {}, Path(f"{name}.pth"), {})
    check_whole(found, shapes)
    assert found.library == "mmdet"
    settings = found.settings
    head = name.split("_")[0].replace("-", "_").replace("mask_rcnn", "faster_rcnn")
    if head == "atss":
        assert found.spec.part == "pyramid"
    else:
        assert settings["detector"] == head.replace("cascade_faster_rcnn", "cascade_rcnn")
        assert found.spec.num_classes == 80
        assert found.spec.class_names[:2] == ("person", "bicycle")
    backbone = settings["backbone"]
    assert (backbone["groups"] > 1) == ("x101" in name)
    assert backbone["dcn"] == ("v2" if "mdconv" in name else "v1" if "dconv" in name else "")


def test_the_paper_s_teacher_is_whole_but_for_its_mask_head():
    shapes = MMDET[PAPER_S_TEACHER]
    found = understand(shapes, {}, Path("cascade_x101_coco-e75f90c8.pth"), {})
    backbone = {"depth": 101, "width": 64, "groups": 32, "group_width": 4, "dcn": "v1"}
    assert found.settings["backbone"].items() >= backbone.items()
    reasons = list(found.report.skipped.values())
    assert reasons.count("the mask head: masks are not predicted here") == 36
    assert len(found.report.used) == 626

    # As a file of mmdetection 1.x names its offsets, also after the upgrade to 2.x.
    old = {key.replace(".conv_offset.", "_offset."): value for key, value in shapes.items()}
    assert old != shapes
    assert understand(old, {}, Path("x.pth"), {}).report.whole
