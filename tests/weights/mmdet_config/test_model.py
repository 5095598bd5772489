"""A checkpoint's own config: used, or refused by name; never ignored, never run."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from drkd_jax.errors import UserError
from drkd_jax.models.dense import level_anchors
from drkd_jax.weights.libraries.understanding import abstract
from drkd_jax.weights.mmdet_config.model import class_names
from drkd_jax.weights.mmdet_config.pixels import read_pixels
from drkd_jax.weights.mmdet_config.text import ConfigTextError, Unread, read_config_text
from tests.weights.mmdet_config.configs import FASTER_RCNN, RETINANET, read

TEXTS = {"mmdet retinanet": RETINANET, "mmdet faster_rcnn": FASTER_RCNN}


def changed(name, old, new):
    text = TEXTS[name]
    assert old in text, old
    return text.replace(old, new)


def flat(settings, start=""):
    found = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            found |= flat(value, f"{start}{key}.")
        else:
            found[start + key] = value
    return found


@pytest.mark.parametrize("name", TEXTS)
def test_the_usual_config_changes_nothing(name):
    plain, own = read(name, ""), read(name, TEXTS[name])
    assert own.report.whole
    usual = {"anchors.ratios": (0.5, 1.0, 2.0), "anchors.sides": (), "test.score": 0.05}
    usual |= {"anchors.scale": 4.0, "anchors.octaves": 3, "test.pre_nms": 1000}
    if name == "mmdet faster_rcnn":
        usual |= {"anchors.scale": 8.0, "anchors.octaves": 1, "roi_stds": (0.1, 0.1, 0.2, 0.2)}
        usual |= {"roi_sampling": 0, "roi_aligned": True, "roi_max_level": 5}
        usual |= {f"proposals.{key}": 1000 for key in ("pre_nms_test", "max_out_test")}
        usual |= {"proposals.nms": 0.7}
        del usual["test.pre_nms"]
    usual |= {"delta_stds": (1.0,) * 4, "test.max_out": 100, "test.nms": 0.5}
    usual |= {"extra_relu": False}
    assert flat(own.settings) == usual | flat(plain.settings)
    assert own.spec.pixels[0] == plain.spec.pixels[0]


@pytest.mark.parametrize(
    ("old", "new", "setting", "value"),
    [
        ("octave_base_scale=4", "octave_base_scale=2", "anchors.scale", 2.0),
        ("[0.5, 1.0, 2.0]", "[0.3, 1, 3]", "anchors.ratios", (0.3, 1.0, 3.0)),
        (
            *("octave_base_scale=4, scales_per_octave=3", "scales=[2, 5, 11]"),
            *("anchors.sides", (2.0, 5.0, 11.0)),
        ),
        (
            *("ratios=[0.5, 1.0, 2.0],", "ratios=[1.0], base_sizes=[16, 32, 64, 128, 256],"),
            *("anchors.scale", 8.0),
        ),
        ("[1.0, 1.0, 1.0, 1.0]", "[.1, .1, .2, .2]", "delta_stds", (0.1, 0.1, 0.2, 0.2)),
        ("num_outs=5", "num_outs=5, relu_before_extra_convs=True", "extra_relu", True),
        ("start_level=1", "start_level=1.0, relu_before_extra_convs=True", "extra_relu", True),
        ("score_thr=0.05", "score_thr=0.3", "test.score", 0.3),
        ("score_thr=0.05,", "", "test.score", 0.0),
        ("iou_threshold=0.5", "iou_threshold=0.6", "test.nms", 0.6),
        ("iou_threshold=0.5", "iou_thr=0.6", "test.nms", 0.6),
        ("max_per_img=100", "max_per_img=30 * 10", "test.max_out", 300),
        ("nms_pre=1000", "nms_pre=77", "test.pre_nms", 77),
        ("type='BN'", "type='SyncBN', eps=1e-3", "backbone.eps", 1e-3),
    ],
)
def test_what_a_retinanet_s_config_says_is_used(old, new, setting, value):
    text = changed("mmdet retinanet", old, new)
    if "ratios=[1.0]" in new:  # as many anchors a cell as the arrays have
        text = text.replace("scales_per_octave=3", "scales_per_octave=9")
    found = read("mmdet retinanet", text)
    assert found.report.whole, found.report.faults()
    assert flat(found.settings)[setting] == value
    assert any(f"{setting} = " in line and "the config in" in line for line in found.spec.lines({}))


@pytest.mark.parametrize(
    ("old", "new", "setting", "value"),
    [
        ("scales=[8]", "scales=[2]", "anchors.scale", 2.0),
        ("scales=[8]", "octave_base_scale=6, scales_per_octave=1", "anchors.scale", 6.0),
        ("nms_pre=1000", "nms_pre=300", "proposals.pre_nms_test", 300),
        ("max_per_img=1000", "max_per_img=400", "proposals.max_out_test", 400),
        ("max_per_img=1000", "nms_post=800, max_num=800", "proposals.max_out_test", 800),
        ("nms=dict(iou_threshold=0.7, type='nms')", "nms_thr=0.6", "proposals.nms", 0.6),
        ("[0.1, 0.1, 0.2, 0.2]", "[.05, .05, .1, .1]", "roi_stds", (0.05, 0.05, 0.1, 0.1)),
        ("sampling_ratio=0", "sampling_ratio=2", "roi_sampling", 2),
        ("sampling_ratio=0", "sampling_ratio=0, aligned=False", "roi_aligned", False),
        ("[4, 8, 16, 32],", "[4, 8, 16],", "roi_max_level", 4),
        ("score_thr=0.05", "score_thr=0.001", "test.score", 0.001),
        ("num_outs=5", "num_outs=4", "max_level", 5),
    ],
)
def test_what_a_faster_rcnn_s_config_says_is_used(old, new, setting, value):
    text = changed("mmdet faster_rcnn", old, new)
    if setting == "max_level":
        text = text.replace("[4, 8, 16, 32, 64]", "[4, 8, 16, 32]")
    found = read("mmdet faster_rcnn", text, "cfg")
    assert found.report.whole, found.report.faults()
    assert flat(found.settings)[setting] == value


def test_what_is_used_reaches_the_model():
    text = changed("mmdet faster_rcnn", "[1.0, 1.0, 1.0, 1.0]", "[.5, .5, .4, .4]")
    text = text.replace("[0.1, 0.1, 0.2, 0.2]", "[.05, .05, .1, .1]")
    text = text.replace("sampling_ratio=0", "sampling_ratio=2, aligned=False")
    text = text.replace("[4, 8, 16, 32],", "[4, 8, 16],").replace("scales=[8]", "scales=[3]")
    found = read("mmdet faster_rcnn", text)
    detector = abstract("detector", found.settings, 3, jnp.float32)
    rule = detector.convention
    assert (rule.rpn_stds, rule.roi_stds) == ((0.5, 0.5, 0.4, 0.4), (0.05, 0.05, 0.1, 0.1))
    assert (rule.roi_aligned, rule.roi_max_level, detector.roi.sampling) == (False, 4, 2)
    assert detector.roi.convention is rule
    shapes = [(4, 4), (2, 2), (1, 1), (1, 1), (1, 1)]
    anchors = level_anchors(detector.settings.anchors, detector.spec.strides, shapes, rule)[0]
    np.testing.assert_array_equal(anchors[1], [-6.0, -6.0, 6.0, 6.0])  # ratio 1: 3 strides of 4


REFUSED = [
    ("mmdet retinanet", "octave_base_scale=4", "octave_base_scale=f(4)", "octave_base_scale = f"),
    ("mmdet retinanet", "strides=[8", "center_offset=0.5, strides=[8", "center_offset = 0.5"),
    ("mmdet retinanet", "strides=[8, 16", "strides=[4, 16", "anchor_generator.strides"),
    ("mmdet retinanet", "strides=[8", "scale_major=False, strides=[8", "scale_major = False"),
    ("mmdet retinanet", "'AnchorGenerator'", "'LegacyAnchorGenerator'", "LegacyAnchorGenerator"),
    ("mmdet retinanet", "[.0, .0, .0, .0]", "[.1, .0, .0, .0]", "bbox_coder.target_means"),
    ("mmdet retinanet", "'DeltaXYWHBBoxCoder'", "'TBLRBBoxCoder'", "TBLRBBoxCoder"),
    ("mmdet retinanet", "use_sigmoid=True", "use_sigmoid=False", "loss_cls.use_sigmoid = False"),
    ("mmdet retinanet", "type='nms'", "type='soft_nms'", "nms.type = 'soft_nms'"),
    ("mmdet retinanet", "min_bbox_size=0", "min_bbox_size=8", "min_bbox_size = 8"),
    ("mmdet retinanet", "nms=dict(type='nms', iou_threshold=0.5)", "nms=None", "nms = None (no s"),
    ("mmdet retinanet", "type='nms'", "type='nms', max_num=50", "nms.max_num = 50"),
    ("mmdet retinanet", "type='nms'", "type='nms', score_threshold=.2", "nms.score_threshold = "),
    ("mmdet retinanet", "max_per_img=100", "max_per_img=-1", "max_per_img = -1"),
    ("mmdet retinanet", "score_thr=0.05", "score_thr=0.05, fancy=3", "test_cfg.fancy = 3"),
    ("mmdet retinanet", "num_classes=3", "num_classes=4", "num_classes 4"),
    ("mmdet retinanet", "depth=18", "depth=34", "backbone.depth 34"),
    ("mmdet retinanet", "num_stages=4", "num_stages=4, plugins=[dict(cfg=1)]", "backbone.plugins"),
    ("mmdet retinanet", "num_stages=4", "num_stages=4, dilations=(1, 1, 2, 4)", "dilations"),
    ("mmdet retinanet", "num_stages=4", "num_stages=4, strides=(1, 2, 2, 1)", "strides"),
    ("mmdet retinanet", "type='ResNet'", "type='Res2Net'", "backbone.type = 'Res2Net'"),
    ("mmdet retinanet", "type='BN'", "type='GN', num_groups=4", "num_groups = 4"),
    ("mmdet retinanet", "'on_input'", "'on_lateral'", "add_extra_convs = 'on_lateral'"),
    ("mmdet retinanet", "'on_input'", "'on_output'", "extra 'conv_p5'"),
    ("mmdet retinanet", "start_level=1", "start_level=0", "neck.start_level = 0"),
    ("mmdet retinanet", "type='FPN'", "type='PAFPN'", "neck.type = 'PAFPN'"),
    (
        *("mmdet retinanet", "type='FPN'", "type='FPN', upsample_cfg=dict(mode='bilinear')"),
        "upsample_cfg.mode = 'bilinear'",
    ),
    ("mmdet retinanet", "score_thr=0.05", "score_thr='0.3'", "test_cfg.score_thr = '0.3'"),
    ("mmdet retinanet", "iou_threshold=0.5", "iou_threshold='x'", "nms.iou_threshold = 'x'"),
    ("mmdet retinanet", "num_outs=5", "num_outs='5'", "neck.num_outs = '5'"),
    ("mmdet faster_rcnn", "nms=dict(iou_threshold=0.7, type='nms')", "nms_thr=()", "nms_thr = ()"),
    ("mmdet faster_rcnn", "type='SingleRoIExtractor'", "type='GenericRoIExtractor'", "Generic"),
    ("mmdet faster_rcnn", "type='RoIAlign'", "type='RoIPool'", "RoIPool"),
    ("mmdet faster_rcnn", "output_size=7", "output_size=14", "output_size = 14"),
    ("mmdet faster_rcnn", "sampling_ratio=0,", "sampling_ratio=int('x'),", "sampling_ratio = int"),
    ("mmdet faster_rcnn", "out_channels=16,\n            roi", "finest_scale=28,\n roi", "finest"),
    ("mmdet faster_rcnn", "roi_feat_size=7", "roi_feat_size=14", "roi_feat_size = 14"),
    ("mmdet faster_rcnn", "reg_class_agnostic=False", "reg_class_agnostic=True", "class_agnostic"),
    (
        *("mmdet faster_rcnn", "roi_feat_size=7", "cls_predictor_cfg=dict(type='NormedLinear')"),
        "cls_predictor_cfg.type = 'NormedLinear'",
    ),
    ("mmdet faster_rcnn", "nms_pre=1000", "nms_across_levels=True", "nms_across_levels"),
    ("mmdet faster_rcnn", "type='RPNHead'", "num_convs=2", "rpn_convs 2 (its arrays: 1)"),
    ("mmdet faster_rcnn", "type='StandardRoIHead'", "type='DoubleHeadRoIHead'", "DoubleHead"),
    ("mmdet faster_rcnn", "type='StandardRoIHead'", "shared_head=dict(a=1)", "shared_head"),
    ("mmdet retinanet", "type='RetinaNet'", "type='MyRetinaNet'", "model.type = 'MyRetinaNet'"),
    ("mmdet retinanet", "type='RetinaNet'", "type='FasterRCNN'", "model.type = 'FasterRCNN'"),
    ("mmdet faster_rcnn", "type='FasterRCNN'", "type='RetinaNet'", "model.type = 'RetinaNet'"),
    ("mmdet faster_rcnn", "type='FasterRCNN'", "type='my.FastestRCNN'", "type = 'FastestRCNN' (Fa"),
    ("mmdet faster_rcnn", "fc_out_channels=24", "fc_out_channels=1024", "fc 1024"),
]


@pytest.mark.parametrize(("name", "old", "new", "named"), REFUSED)
def test_what_cannot_be_built_is_refused_by_name(name, old, new, named):
    with pytest.raises(UserError) as raised:
        read(name, changed(name, old, new))
    assert named in str(raised.value)
    complaints = re.split(r"; |: ", str(raised.value).rpartition(". A teacher")[0])
    assert len(set(complaints)) == len(complaints)


@pytest.mark.parametrize("kind", ["mmdet.RetinaNet", "SingleStageDetector", "PointRend"])
def test_a_class_of_the_library_that_computes_the_same_boxes_is_read(kind):
    two = kind == "PointRend"
    name, own = ("faster_rcnn", "FasterRCNN") if two else ("retinanet", "RetinaNet")
    found = read(f"mmdet {name}", changed(f"mmdet {name}", f"'{own}'", f"'{kind}'"))
    assert (found.spec.part, found.spec.unbuilt) == ("detector", ())


BN = "norm_cfg=dict(type='BN'{})"


@pytest.mark.parametrize(("neck", "head"), [(", eps=1e-3", ""), ("", ", eps=1e-3")])
def test_norms_of_pyramid_and_head_that_are_folded_have_one_eps(neck, head):
    text = changed("mmdet retinanet", "num_outs=5", f"num_outs=5, {BN.format(neck)}")
    text = text.replace("stacked_convs=2", f"stacked_convs=2, {BN.format(head)}")
    with pytest.raises(UserError, match=r"bbox_head\.norm_cfg\.eps = .* that of the pyramid"):
        read("mmdet retinanet", text)
    same = text.replace(BN.format(head), BN.format(neck))
    found = read("mmdet retinanet", same)
    assert found.spec.neck_eps == (1e-3 if neck else 1e-5)


def test_a_head_that_cannot_be_built_leaves_backbone_and_pyramid_to_a_teacher():
    text = changed("mmdet retinanet", "type='nms'", "type='soft_nms'")
    for how in ({"heads": False}, {"part": "pyramid"}):
        found = read("mmdet retinanet", text, **how)
        assert found.spec.part == "pyramid"
        assert found.report.whole
        assert "anchors" not in found.settings
        assert all(entry.ours.startswith(("backbone.", "neck.")) for entry in found.table)
    with pytest.raises(UserError, match=r"soft_nms.*part=pyramid"):
        read("mmdet retinanet", text)


def test_the_stride_of_caffe_s_backbones_comes_from_the_config():
    text = RETINANET.replace("depth=18", "depth=50").replace("[8, 16, 32, 64],", "[32],")
    for style in ("caffe", "pytorch"):
        found = read("mmdet retinanet 50", text.replace("'pytorch'", f"'{style}'"))
        assert found.report.whole
        assert found.settings["backbone"]["style"] == style


@pytest.mark.parametrize(
    "text",
    [
        "classes = ('nut', 'bolt')",
        "data = dict(train=dict(type='RepeatDataset', dataset=dict(classes=['nut', 'bolt'])))",
        "metainfo = {'classes': ('nut', 'bolt'), 'palette': [(1, 2, 3)]}",
        "val_dataloader = dict(dataset=dict(dataset=dict(metainfo=dict(CLASSES=['nut', 'bolt']))))",
        "CLASSES = ['nut', 'bolt']\ndata = dict(val=dict(classes=CLASSES))",
    ],
)
def test_class_names_of_a_config(text):
    assert class_names(read_config_text(text)) == ("nut", "bolt")


# --- the text itself


def test_files_that_are_based_on_one_another_are_laid_over():
    text = (
        "configs/_base_/x.py\nnorm = dict(type='BN')\n"
        "model = dict(neck=dict(a=1, b=2), head=dict(c=3, norm=norm))\n"
        "/tmp/y.py\n_base_ = ['_base_/x.py']\n"
        "model = dict(neck=dict(b=7), head=dict(_delete_=True, d=4, n={{_base_.norm}}))\n"
    )
    found = read_config_text(text)["model"]
    assert found == {"neck": {"a": 1, "b": 7}, "head": {"d": 4, "n": {"type": "BN"}}}


def test_later_statements_count():
    text = "m = dict(a=dict(b=1))\nm['a']['b'] = 2\nm.update(c=-3)\nn = [*m['a'].get(1), 4]"
    found = read_config_text(text)
    assert found["m"] == {"a": {"b": 2}, "c": -3}
    assert isinstance(read_config_text("x = [2 ** i for i in range(3)]")["x"], Unread)


def test_json_is_read_as_well():
    assert read_config_text('{"model": {"a": true}}') == {"model": {"a": True}}
    assert read_config_text("{'model': dict(a=True)}") == {"model": {"a": True}}


def test_no_text_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (
        "import os\nx = os.system('touch owned')\nfor i in range(3):\n    y = open('owned', 'w')\n"
    )
    found = read_config_text(text + "z = __import__('os').getcwd()\nw = 9 ** 9 ** 9 ** 9\n")
    assert all(isinstance(found[name], Unread) for name in "xyzw")
    assert not list(tmp_path.iterdir())


def test_a_part_that_is_broken_is_no_plain_value_and_the_rest_is_read():
    found = read_config_text("a = dict(b=1)\nmodel = dict(c=\nd = 2\n")
    assert (found["a"], found["d"]) == ({"b": 1}, 2)
    assert isinstance(found["model"], Unread)
    with pytest.raises(UserError, match="model = "):
        read("mmdet retinanet", "model = dict(c=\nd = 2\n")
    with pytest.raises(ConfigTextError):
        read_config_text("!!! nothing")
    with pytest.raises(UserError, match="config text that it carries cannot be read"):
        read("mmdet retinanet", "!!! nothing")


@pytest.mark.parametrize("text", ["x = " + "[" * 5000, "x = " + "-" * 20000 + "1", "{" * 3000])
def test_hostile_texts_end_with_a_word(text):
    try:
        found = read_config_text(text)
        assert isinstance(found["x"], Unread)
    except ConfigTextError:
        pass


DOUBLED = {
    "lists": "x{0} = [x{1}, x{1}]",
    "keys": "x{0} = (x{1}, x{1})\nd{0} = {{x{0}: 1}}",
    "dicts": "x{0} = dict()\nx{0}['a'] = x{1}\nx{0}['b'] = x{1}",
    "texts": "x{0} = x{1} + x{1}",
    "numbers": "x{0} = x{1} * x{1}",
}


@pytest.mark.parametrize("line", DOUBLED.values(), ids=DOUBLED)
def test_values_that_double_in_every_line_end_with_a_word(line):
    start = "'ab'" if "+" in line else "[1, 1]" if "*" not in line else 3
    many = f"x0 = {start}\n" + "\n".join(line.format(i + 1, i) for i in range(60))
    found = read_config_text(f"{many}\nimg_norm_cfg = dict(mean=x60)\n")
    assert len(repr(found)) < 1e7
    with pytest.raises(UserError, match="img_norm_cfg"):
        read_pixels(found)
    kinds = read_config_text(f"{many}\ntest_pipeline = [dict(type=x60)]\n")
    assert read_pixels(kinds) is None


def test_values_that_grow_where_nothing_is_assigned_end_with_a_word():
    """In one dict, and inside the value of another name."""
    row = "[[[0] * 300] * 300] * 300"
    for text, left in (
        (f"{{'model': {{'backbone': {{'type': {row}}}}}, 'a': 1}}", "a"),
        ("a = 1\nm = dict(b=1)\nmodel = dict(c=[m] * 300)\nm['b'] = [[0] * 300] * 300\n", "a"),
        (f"{{({row.replace('[', '(').replace(']', ',)')},): 1, 'a': 1}}", "a"),
    ):
        found = read_config_text(text)
        assert found[left] == 1
        assert all(isinstance(v, Unread) for k, v in found.items() if k not in ("a", "m"))
        assert isinstance(found.get("model", Unread("")), Unread)


def test_a_value_that_holds_itself_is_no_plain_value():
    found = read_config_text("m = dict(a=1)\nm['b'] = m\nn = dict(c=m)")
    assert isinstance(found["m"], Unread)
    assert isinstance(found["n"]["c"], Unread)
