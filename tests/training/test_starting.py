"""Weights from files, for students and teachers."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from drkd_jax.errors import UserError
from drkd_jax.models.arrays import flatten
from drkd_jax.models.conventions import CAFFE_PIXELS
from drkd_jax.step.train_step import SplitModule, merge_module, split_module
from drkd_jax.training.starting import build_student, check_files, start_from
from drkd_jax.training.teacher import load_teacher
from drkd_jax.weights.libraries.key_report import give
from drkd_jax.weights.libraries.understanding import library_table
from drkd_jax.weights.opening import load
from drkd_jax.weights.ours import write_ours
from tests.weights.foreign.torch_writing import write_torch
from tests.weights.mmdet_config.configs import RETINANET
from tests.weights.small import foreign, random_arrays

STUDENT = {
    "detector": "retinanet",
    "backbone": {"depth": 18, "width": 8, "norm": "frozen_bn"},
    "channels": 16,
    "head_convs": 2,
}


def config(**student):
    return {"seed": 0, "student": {**STUDENT, **student}, "teacher": None}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A detector's file, its arrays by our names, and a backbone's file."""
    folder = tmp_path_factory.mktemp("files")
    arrays, theirs = foreign("mmdet retinanet")
    save_file(theirs, folder / "detector.safetensors")
    backbone = {
        key.removeprefix("backbone."): value
        for key, value in theirs.items()
        if key.startswith("backbone.")
    }
    classifier = {"fc.weight": np.zeros((10, 64), np.float32), "fc.bias": np.zeros(10, np.float32)}
    save_file({**backbone, **classifier}, folder / "resnet18.safetensors")
    return folder, arrays


def student_arrays(values, num_classes=3):
    student, origin = build_student(values, num_classes, jnp.float32)
    parts = split_module(student, student.is_trained)
    return flatten(parts.params) | flatten(parts.model_state), origin


def test_an_imagenet_file_fills_the_backbone_and_nothing_else(files):
    folder, arrays = files
    path = str(folder / "resnet18.safetensors")
    found, origin = student_arrays(config(init=path))
    backbone = [name for name in arrays if name.startswith("backbone.")]
    for name in backbone:
        np.testing.assert_array_equal(found[name], arrays[name])
    assert f"{len(backbone)} of {len(found)} arrays (random: head." in origin
    assert "2 of the ImageNet classifier skipped" in origin
    random, _ = student_arrays(config())
    np.testing.assert_array_equal(found["head.cls.kernel"], random["head.cls.kernel"])


def test_a_detector_s_file_fills_the_student_but_for_other_classes(files):
    folder, arrays = files
    path = str(folder / "detector.safetensors")
    found, origin = student_arrays(config(init=path))
    assert f"{len(arrays)} of {len(arrays)} arrays" in origin
    for name, value in arrays.items():
        np.testing.assert_array_equal(found[name], value)
    _, origin = student_arrays(config(init=path), num_classes=5)
    assert "(random: head.cls.bias, head.cls.kernel)" in origin


def test_a_head_of_other_conventions_is_left_out(files):
    folder, _ = files
    path = str(folder / "detector.safetensors")
    _, origin = student_arrays(config(init=path, convention="torchvision", extra="conv_c5"))
    assert "without its heads, which are mmdet's" in origin


def test_another_backbone_is_refused(files):
    folder, _ = files
    path = str(folder / "resnet18.safetensors")
    for key, value in (("depth", 34), ("norm", "gn"), ("width", 16)):
        other = {**STUDENT["backbone"], key: value}
        with pytest.raises(UserError, match=rf"backbone.{key} is .* in the config and .* in the"):
            build_student(config(init=path, backbone=other), 3, jnp.float32)


def test_a_backbone_of_which_little_fits_is_refused():
    student, _ = build_student(config(), 3, jnp.float32)
    arrays, _ = student_arrays(config(backbone={**STUDENT["backbone"], "width": 16}))
    with pytest.raises(UserError, match=r"W: only \d+ of \d+ arrays of the backbone fit .* is \("):
        start_from(student, arrays, "W")


def test_an_eps_that_differs_is_refused(files, tmp_path):
    folder, _ = files
    weights = load(folder / "resnet18.safetensors", {"backbone": {"eps": 0.0}})
    write_ours(tmp_path / "ours.safetensors", weights.arrays, weights.about)
    values = config(init=str(tmp_path / "ours.safetensors"))
    with pytest.raises(UserError, match=r"differently; set config.student.backbone.eps = 0"):
        build_student(values, 3, jnp.float32)
    values["student"]["backbone"] = {**STUDENT["backbone"], "eps": 0.0}
    build_student(values, 3, jnp.float32)


def test_a_backbone_that_strides_otherwise_is_refused(tmp_path):
    arrays = random_arrays("backbone", {"backbone": {"width": 8}}, 0)
    theirs = give(arrays, library_table("mmdet", arrays, False))
    save_file(theirs, tmp_path / "resnet50_caffe.safetensors")
    init = str(tmp_path / "resnet50_caffe.safetensors")
    fifty = {"depth": 50, "width": 8}
    with pytest.raises(UserError, match=r"set config.student.backbone.style = caffe"):
        build_student(config(init=init, backbone=fifty), 3, jnp.float32)
    values = config(init=init, backbone={**fifty, "style": "caffe"})
    values["data"] = {"mean": (104.0, 117.0, 123.0), "std": (1, 1, 1), "channels": "bgr"}
    student, _ = build_student(values, 3, jnp.float32)  # a mean to less than a grey level
    assert student.backbone.stages[1][0].convs[0].strides == 2


def test_a_head_that_is_not_built_leaves_a_teacher_its_pyramid(files, tmp_path):
    theirs = foreign("mmdet retinanet")[1]
    text = RETINANET.replace("type='nms'", "type='soft_nms'")
    content = {"meta": {"config": text, "CLASSES": ("nut", "bolt", "pin")}}
    write_torch(tmp_path / "x.pth", content | {"state_dict": theirs})
    teacher = load_teacher({"checkpoint": str(tmp_path / "x.pth")}, 3, 0)
    assert "its head is left out: model.test_cfg.nms.type = 'soft_nms'" in teacher.origin
    assert teacher.categories == ("nut", "bolt", "pin")
    assert not hasattr(teacher.detector, "head")
    with pytest.raises(UserError, match=r"nms.type = 'soft_nms'"):
        load_teacher({"checkpoint": str(tmp_path / "x.pth"), "evaluate": True}, 3, 0)


def test_outputs_of_classes_in_another_order_stay_random(files, tmp_path):
    weights = load(files[0] / "detector.safetensors")
    about = dataclasses.replace(weights.about, categories=((1, "nut"), (2, "bolt"), (3, "pin")))
    write_ours(tmp_path / "x.safetensors", weights.arrays, about)
    values = config(init=str(tmp_path / "x.safetensors"))
    _, origin = build_student(values, 3, jnp.float32, ["nut", "bolt", "pin"])
    assert "random" not in origin
    _, origin = build_student(values, 3, jnp.float32, ["bolt", "nut", "pin"])
    assert "in another order" in origin
    assert origin.endswith("(random: head.cls.bias, head.cls.kernel)")


def test_a_head_of_other_anchors_is_left_out(files):
    folder, _ = files
    path = str(folder / "detector.safetensors")
    _, origin = student_arrays(config(init=path, anchors={"scale": 2.0}))
    assert "without its heads, whose settings are others (anchors " in origin


def test_weights_that_read_other_colours_are_refused(files, tmp_path):
    folder, _ = files
    path = tmp_path / "resnet18_caffe.safetensors"
    path.write_bytes((folder / "resnet18.safetensors").read_bytes())
    values = config(init=str(tmp_path / "ours.safetensors"))
    values["data"] = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}
    weights = load(path, {}, "mmdet")
    write_ours(tmp_path / "ours.safetensors", weights.arrays, weights.about)
    with pytest.raises(UserError, match=r"set config.data.mean = .*config.data.channels = bgr"):
        build_student(values, 3, jnp.float32)
    values["data"] = {"mean": (103.53, 116.28, 123.675), "std": [1, 1, 1], "channels": "bgr"}
    build_student(values, 3, jnp.float32)


def test_a_teacher_s_file_says_what_it_reads(files, tmp_path):
    folder, _ = files
    path = tmp_path / "retinanet_r18_caffe.safetensors"
    path.write_bytes((folder / "detector.safetensors").read_bytes())
    teacher = load_teacher({"checkpoint": str(path)}, 3, 0)
    caffe = {"mean": CAFFE_PIXELS.mean, "std": CAFFE_PIXELS.std, "channels": "bgr"}
    assert teacher.pixels == caffe
    teacher = load_teacher({"checkpoint": str(path), "data": {"channels": "rgb"}}, 3, 0)
    assert teacher.pixels == {**caffe, "channels": "rgb"}


def test_a_student_without_norms_is_refused():
    folded = {**STUDENT["backbone"], "norm": "folded"}
    with pytest.raises(
        UserError, match=r"norm = 'folded': .* train with 'frozen_bn', 'bn' or 'gn'"
    ):
        build_student(config(backbone=folded), 3, jnp.float32)


def test_files_that_are_missing_are_named_at_once():
    values = config(init="resnet50.pth") | {"teacher": {"checkpoint": "teacher.pth"}}
    with pytest.raises(
        UserError, match=r"student.init = resnet50.pth and .* = teacher.pth: not th"
    ):
        check_files(values)


def test_what_a_file_of_ours_does_not_list_is_the_default(files, tmp_path):
    weights = load(files[0] / "detector.safetensors")
    settings = dict(weights.about.settings)
    settings["backbone"] = {k: v for k, v in settings["backbone"].items() if k != "style"}
    about = dataclasses.replace(weights.about, settings=settings)
    write_ours(tmp_path / "x.safetensors", weights.arrays, about)
    values = config(init=str(tmp_path / "x.safetensors"))
    values["student"]["backbone"] = {**STUDENT["backbone"], "style": "caffe"}
    with pytest.raises(UserError, match=r"style is 'caffe' in the config and 'pytorch' in the"):
        build_student(values, 3, jnp.float32)


@pytest.mark.parametrize("kind", ["raw", "converted"])
def test_a_teacher_from_a_file_is_folded_and_has_no_heads(files, kind, tmp_path):
    folder, whole = files
    path = folder / "detector.safetensors"
    if kind == "converted":
        weights = load(path)
        path = tmp_path / "ours.safetensors"
        write_ours(path, weights.arrays, weights.about)
    teacher = load_teacher({"checkpoint": str(path)}, 3, 0)
    arrays = flatten(teacher.arrays)
    assert all(name.startswith(("backbone.", "neck.")) for name in arrays)
    assert not any("norm" in name for name in arrays)
    kinds = {name: ("bfloat16" if value.ndim > 1 else "float32") for name, value in arrays.items()}
    assert {name: value.dtype.name for name, value in arrays.items()} == kinds
    assert f"{path}, detector" in teacher.origin
    assert f"{len(whole)} arrays; its heads are left out" in teacher.origin


def test_a_teacher_s_features_are_the_detector_s(files):
    folder, _ = files
    path = str(folder / "detector.safetensors")
    teacher = load_teacher({"checkpoint": path, "dtype": "float32"}, 3, 0)
    student, _ = build_student(config(init=path), 3, jnp.float32)
    images = np.random.default_rng(0).standard_normal((1, 64, 64, 3)).astype(np.float32)
    empty = type(teacher.arrays)({})
    folded = merge_module(SplitModule(teacher.graph, teacher.arrays, empty)).features(images)
    for a, b in zip(folded.maps, student.features(images).maps, strict=True):
        scale = np.abs(np.asarray(b)).max()
        assert np.isfinite(scale)
        np.testing.assert_allclose(np.asarray(a) / scale, np.asarray(b) / scale, atol=2e-5)


def test_a_teacher_s_settings_have_to_agree_with_its_file(files):
    folder, _ = files
    path = str(folder / "detector.safetensors")
    with pytest.raises(UserError, match=r"backbone.depth is 101 in the config and 18 in the file"):
        load_teacher({"checkpoint": path, "backbone": {"depth": 101}}, 3, 0)
    with pytest.raises(UserError, match="it has no feature pyramid"):
        load_teacher({"checkpoint": str(folder / "resnet18.safetensors")}, 3, 0)


def test_a_teacher_whose_precision_is_to_be_measured_keeps_its_heads(files):
    folder, _ = files
    path = str(folder / "detector.safetensors")
    teacher = load_teacher({"checkpoint": path, "evaluate": True}, 3, 0)
    assert "head.cls.kernel" in flatten(teacher.arrays)
