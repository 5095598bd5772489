"""A checkpoint's config with invalid or too many values; other settings for images."""

import pytest

from drkd_jax.errors import UserError
from drkd_jax.models.conventions import Pixels
from drkd_jax.weights.foreign.pickled_names import Inert
from drkd_jax.weights.mmdet_config import text as config_text
from drkd_jax.weights.mmdet_config.model import find_config
from drkd_jax.weights.mmdet_config.pixels import read_pixels
from drkd_jax.weights.mmdet_config.text import ConfigTextError, read_config_text
from tests.weights.mmdet_config.configs import RETINANET
from tests.weights.mmdet_config.test_model import changed, flat, read

ODD = [
    ("mmdet retinanet", "strides=[8, 16, 32, 64, 128]", "strides=8", "strides = 8"),
    ("mmdet retinanet", "[8, 16, 32, 64, 128]", "[dict(a=1)] * 5", "anchor_generator.strides"),
    ("mmdet retinanet", "octave_base_scale=4", "octave_base_scale=1e999", "not a finite number"),
    ("mmdet retinanet", "[0.5, 1.0, 2.0]", "[float('nan'), 1, 2]", "ratios = (nan, 1, 2)"),
    ("mmdet retinanet", "scales_per_octave=3", "scales_per_octave=3.7", "not a whole number"),
    ("mmdet retinanet", "start_level=1", "start_level=1.5", "start_level = 1.5 (not a whole"),
    ("mmdet retinanet", "num_classes=3", "num_classes='3'", "num_classes = '3' (no number)"),
    ("mmdet retinanet", "max_per_img=100", "max_per_img=99.5", "max_per_img = 99.5"),
    ("mmdet retinanet", "score_thr=0.05", "score_thr=float('nan')", "score_thr = nan"),
    ("mmdet retinanet", "octave=3", "octave=10**9", "scales_per_octave = 1000000000 (cannot"),
    ("mmdet retinanet", "max_per_img=100", "max_per_img=10**14", "max_per_img = 100000000000000"),
    ("mmdet faster_rcnn", "sampling_ratio=0", "sampling_ratio=10**9", "sampling_ratio = 1000"),
    ("mmdet retinanet", "use_sigmoid=True, ", "", "loss_cls.use_sigmoid = False"),
    ("mmdet faster_rcnn", "sampling_ratio=0", "sampling_ratio=2.5", "sampling_ratio = 2.5"),
    (
        *("mmdet faster_rcnn", "type='CrossEntropyLoss', use_sigmoid=False", "type='EQLV2Loss'"),
        "loss_cls.type = 'EQLV2Loss'",
    ),
]


@pytest.mark.parametrize(("name", "old", "new", "named"), ODD)
def test_values_that_are_none_are_refused_by_name(name, old, new, named):
    with pytest.raises(UserError) as raised:
        read(name, changed(name, old, new))
    assert named in str(raised.value)


def test_numbers_and_strides_may_be_written_in_other_ways():
    text = changed("mmdet retinanet", "[8, 16, 32, 64, 128]", "[(8, 8), 16.0, (32,), 64, 128]")
    found = read("mmdet retinanet", text.replace("num_outs=5", "num_outs=5.0"))
    assert flat(found.settings) == flat(read("mmdet retinanet", RETINANET).settings)


LOAD = "\ntest_pipeline = [dict(type='LoadImageFromFile', {})]"
STEP = "model = dict(data_preprocessor=dict(type='DetDataPreprocessor'{}))"
NORMALIZE = (
    "\ntest_dataloader = dict(dataset=dict(pipeline=[dict(type='Normalize', mean=[1, 2, 3], "
    "std=[4, 5, 6], to_rgb=False)]))"
)


@pytest.mark.parametrize(
    ("text", "pixels"),
    [
        (STEP.format(", mean=[1, 2, 3]") + LOAD.format("channel_order='rgb'"), "channel_order"),
        (STEP.format("") + LOAD.format("color_type='grayscale'"), "color_type = 'grayscale'"),
        (STEP.format(""), Pixels((0.0,) * 3, (1.0,) * 3, "bgr")),
        (STEP.format("") + NORMALIZE, Pixels((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), "bgr")),
        ("img_norm_cfg = dict(mean=[1, 2, 3], std=[0, 1, 1])", "std = (0, 1, 1)"),
        ("img_norm_cfg = dict(mean=[1e999, 2, 3], std=[1, 1, 1])", "mean = (inf, 2, 3)"),
    ],
)
def test_what_is_done_to_images_before_the_network(text, pixels):
    if isinstance(pixels, str):
        with pytest.raises(UserError) as raised:
            read_pixels(read_config_text(text))
        assert pixels in str(raised.value)
    else:
        assert read_pixels(read_config_text(text)) == pixels


def test_a_config_without_its_base_file_is_refused():
    text = "_base_ = './r50.py'\nmodel = dict(bbox_head=dict(num_classes=3))"
    with pytest.raises(UserError, match=r"_base_ = './r50.py'"):
        read("mmdet retinanet", text)


def test_a_config_in_another_form_is_read_or_refused_and_never_passed_over():
    assert find_config({"config": b"a = 1"}) == {"a": 1}
    for value in (Inert("easydict.EasyDict"), [1], 3):
        with pytest.raises(UserError, match="the config that it carries is of type"):
            find_config({"config": value})
    double, own, deep = [1], {"a": 1}, [1]
    for _ in range(60):
        double = [double, double]
    for _ in range(100_000):
        deep = [deep]
    own["b"] = own
    for value in (double, own, deep, 1 << 70):
        with pytest.raises(UserError, match="larger than any"):
            find_config({"cfg": {"model": {"type": value}}})


BIG = f"x = [{'0, ' * 400}]\n"
COPIES = {
    "stars": BIG + f"y = [{'*x, ' * 400}]",
    "lists": BIG + f"y = [{'list(x), ' * 400}]",
    "products": f"y = [{'[0] * 9999, ' * 400}]",
    "sums": BIG + f"y = [{'x + x, ' * 400}]",
    "dicts": "x = dict(a=1, b=2, c=3)\n" + f"y = [{'dict(**x), ' * 20000}]",
    "looks": BIG + "x\n" * 400,
    "laid over": f"_base_ = 1\n{BIG}x = dict(a=x)\n" + "x = dict(b=1)\n" * 400,
    "broken parts": "a =\n" * 4000,
}


@pytest.mark.parametrize("text", COPIES.values(), ids=COPIES)
def test_a_text_of_endless_work_ends_with_a_word(text, monkeypatch):
    monkeypatch.setattr(config_text, "_WORK", 40_000)
    with pytest.raises(ConfigTextError, match="more than 40000 values"):
        read_config_text(text)
