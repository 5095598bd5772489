"""A checkpoint's own config for images: used, or refused by name."""

import pytest

from drkd_jax.errors import UserError
from drkd_jax.models.conventions import CAFFE_PIXELS, Pixels
from drkd_jax.weights.libraries.checkpoint_spec import ImageSize
from drkd_jax.weights.mmdet_config.pixels import read_pixels, read_size
from drkd_jax.weights.mmdet_config.text import read_config_text
from tests.weights.mmdet_config.configs import FASTER_RCNN, RETINANET, read

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
        ("test_pipeline = [dict(type='ChannelShuffle')]", "ChannelShuffle"),
        ("test_pipeline = [dict(type='YOLOXHSVRandomAug')]", "HSV"),
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


FLIPS = "test_pipeline = [dict(type='LoadImageFromFile'), dict(type='{}', {}{})]"


@pytest.mark.parametrize("chance", ["prob=1.0", "flip_ratio=0.5", "prob=[0.2, 0.3]", "prob=p()"])
def test_a_test_that_mirrors_its_images_is_refused(chance):
    key = chance.split("=")[0]
    with pytest.raises(UserError, match=rf"RandomFlip\.{key} = "):
        read_pixels(read_config_text(FLIPS.format("mmdet.RandomFlip", chance, "")))


@pytest.mark.parametrize("chance", ["", "prob=0.0", "flip_ratio=None"])
def test_a_test_that_could_mirror_its_images_and_does_not_is_read(chance):
    assert read_pixels(read_config_text(FLIPS.format("RandomFlip", chance, ""))) is not None


@pytest.mark.parametrize("flip", [False, True])
def test_a_test_that_reads_the_mirror_image_too_is_said(flip):
    inner = ", transforms=[dict(type='RandomFlip', flip_ratio=1.0)]"  # of which it reads no number
    text = f"{RETINANET}\n{FLIPS.format('MultiScaleFlipAug', f'flip={flip}', inner)}".replace(
        "dict(type='RandomFlip'",
        "dict(type='Normalize', mean=[1, 2, 3], std=[1, 1, 1]), dict(type='RandomFlip'",
    )
    lines = [line for line in read("mmdet retinanet", text).spec.lines({}) if "mirror" in line]
    assert len(lines) == flip
    assert all("MultiScaleFlipAug.flip = True" in line for line in lines)


@pytest.mark.parametrize(
    ("said", "word"),
    [
        ("type='MyPreprocessor'", r"data_preprocessor\.type = 'MyPreprocessor'"),
        ("bgr_to_grey=True", r"data_preprocessor\.bgr_to_grey = True"),
        ("std=[1, 1, 1])), b=dict(type='Normalize'", r"data_preprocessor\.mean = .*Normalize"),
    ],
)
def test_a_preprocessor_that_does_something_else_is_refused(said, word):
    inner, _, step = said.partition(")), b=")
    text = f"model = dict(data_preprocessor=dict(mean=[4, 5, 6], {inner}))\n"
    text += f"test_pipeline = [{step}, mean=[1, 2, 3], std=[1, 1, 1])]\n" if step else ""
    with pytest.raises(UserError, match=word):
        read_pixels(read_config_text(text))


@pytest.mark.parametrize("turn", ["bgr_to_rgb=True, rgb_to_bgr=False", "rgb_to_bgr=True"])
def test_either_turn_of_the_channels_and_the_usual_keys_are_known(turn):
    text = (
        "model = dict(data_preprocessor=dict(_scope_='mmdet', type='DetDataPreprocessor',"
        f"mean=[4, 5, 6], std=[1, 2, 3], pad_mask=True, pad_size_divisor=32, {turn},"
        "batch_augments=[dict(type='BatchFixedSizePad', size=(1024, 1024))]))"
    )
    assert read_pixels(read_config_text(text)) == Pixels((4.0, 5.0, 6.0), (1.0, 2.0, 3.0), "rgb")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("pad_size_divisor=32", "pad_size_divisor=64", ["data_preprocessor.pad_size_divisor = 64"]),
        ("pad_size_divisor=32,", "", ["data_preprocessor.pad_size_divisor = 1"]),
        ("=32,", "=32, pad_value=114,", ["data_preprocessor.pad_value = 114"]),
        (
            "model = dict(",
            "test_pipeline = [dict(type='Pad', size=(640, 640), pad_val=dict(img=(1, 1, 1)))]\n"
            "model = dict(",
            ["Pad.pad_val = {'img': (1, 1, 1)}", "Pad.size = (640, 640)"],
        ),
        ("=32,", "=32, pad_mask=True,", []),
    ],
)
def test_a_padding_of_another_kind_is_said(old, new, words):
    text = FASTER_RCNN.replace(old, new, 1)
    assert text != FASTER_RCNN
    lines = [line for line in read("mmdet faster_rcnn", text).spec.lines({}) if "padded" in line]
    assert len(lines) == len(words)
    assert all(word in line for word, line in zip(words, lines, strict=True)), lines
