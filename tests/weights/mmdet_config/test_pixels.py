"""A checkpoint's own config for images: used, or refused by name."""

import pytest

from drkd_jax.errors import UserError
from drkd_jax.models.conventions import CAFFE_PIXELS, Pixels
from drkd_jax.weights.libraries.checkpoint_spec import ImageSize
from drkd_jax.weights.mmdet_config.pixels import read_pixels, read_size
from drkd_jax.weights.mmdet_config.text import read_config_text
from tests.weights.mmdet_config.configs import RETINANET, read

PIPELINE = """
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='MultiScaleFlipAug', transforms=[
    dict(type='Normalize', mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)])]
img_norm_cfg = dict(mean=[1, 2, 3], std=[1, 1, 1], to_rgb=True)
"""


@pytest.mark.parametrize(
    ("text", "pixels"),
    [
        (PIPELINE, CAFFE_PIXELS),
        ("a = [1, 2, 3]\nimg_norm_cfg = dict(mean=a, std=[s / 2 for s in a])", "std"),
        (
            "a = [1, 2, 3]\nimg_norm_cfg = dict(mean=a, std=a)",
            Pixels((1.0, 2.0, 3.0), (1.0, 2.0, 3.0)),
        ),
        (
            "model = dict(data_preprocessor=dict(type='mmdet.DetDataPreprocessor', mean=[4, 5, 6],"
            "std=[1, 1, 1], rgb_to_bgr=False))",
            Pixels((4.0, 5.0, 6.0), (1.0, 1.0, 1.0), "bgr"),
        ),
        ("img_norm_cfg = dict(mean=[0.5], std=[1])", "mean"),
        ("img_norm_cfg = dict(mean=[1, 2, 3], std=[0, 1, 1])", "std"),
        ("model = dict(neck=dict(num_outs=5))", None),
        (  # 2.x with images as they are
            "data = dict(test=dict(pipeline=[dict(type='LoadImageFromFile', to_float32=True),"
            "dict(type='MultiScaleFlipAug', img_scale=(1333, 800), transforms=[])]))",
            Pixels((0.0,) * 3, (1.0,) * 3, "bgr"),
        ),
        (
            f"{PIPELINE}train_pipeline = [dict(type='Albu', transforms=[dict(type='Normalize',"
            "mean=[0.5, 0.5, 0.5], std=[0.2, 0.2, 0.2])])]",
            CAFFE_PIXELS,
        ),
    ],
)
def test_mean_std_and_order_of_channels(text, pixels):
    if isinstance(pixels, str):
        with pytest.raises(UserError, match=rf"img_norm_cfg\.{pixels}"):
            read_pixels(read_config_text(text))
    else:
        assert read_pixels(read_config_text(text)) == pixels


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (
            "p = [dict(type='MultiScaleFlipAug', img_scale=(1000, 600))]\ndata = dict(test=dict("
            "pipeline=p))",
            (600, 1000),
        ),
        ("test_pipeline = [dict(type='Resize', scale=(1333, 800), keep_ratio=True)]", (800, 1333)),
        ("train_pipeline = [dict(type='Resize', scale=(64, 64))]", None),
        (
            "test_pipeline = [dict(type='FixScaleResize', scale=(800, 1333), keep_ratio=True)]",
            (800, 1333),
        ),
        ("test_pipeline = [dict(type='Resize', scale=(640, 480))]", (480, 640, True)),  # 3.x
        (
            "test_pipeline = [dict(type='Resize', scale=(300, 400), keep_ratio=False)]",
            (400, 300, True),
        ),
        (
            "test_pipeline = [dict(type='MultiScaleFlipAug', img_scale=(512, 512), transforms=["
            "dict(type='Resize', keep_ratio=False)])]",
            (512, 512, True),
        ),
        (  # 2.x
            "test_pipeline = [dict(type='MultiScaleFlipAug', img_scale=(1333, 800), transforms=["
            "dict(type='Resize')])]",
            (800, 1333),
        ),
    ],
)
def test_the_size_of_the_images_in_a_test(text, size):
    wanted = size and ImageSize(*size)
    assert read_size(read_config_text(text)) == wanted
    found = read("mmdet retinanet", f"{RETINANET}\n{text}").spec
    data = found.data({})
    assert (data.get("shorter"), data.get("longer")) == (size[:2] if size else (None, None))
    assert data["resize"] == ("stretch" if wanted and wanted.stretch else "mmdet")
    assert any("keep_ratio=False" in line for line in found.lines({})) == (
        data["resize"] == "stretch"
    )


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("test_pipeline = [dict(type='LoadImageFromFile'), dict(type='CenterCrop')]", "CenterCrop"),
        ("data = dict(val=dict(pipeline=[dict(type='Albu', transforms=[])]))", "Albu"),
        (
            "data = dict(test=dict(pipeline=[dict(type='MultiScaleFlipAug', transforms=["
            "dict(type='mmdet.FixShapeResize', width=9, height=9)])]))",
            "FixShapeResize",
        ),
        (
            "img_norm_cfg = dict(mean=[1, 2, 3], std=[1, 1, 1])\n"
            "test_pipeline = [dict(type='LoadImageFromFile')]",
            "img_norm_cfg",
        ),
    ],
)
def test_a_test_that_changes_its_images_in_another_way_is_refused(text, word):
    with pytest.raises(UserError, match=word):
        read_pixels(read_config_text(text))
