"""Detectron2's model zoo: pickles of NumPy arrays, read as data, and their names."""

import os
import pickle

import numpy as np
import pytest
from safetensors.numpy import save_file

from drkd_jax.errors import UserError
from drkd_jax.weights.foreign.files import read_foreign
from drkd_jax.weights.libraries.key_report import give
from drkd_jax.weights.libraries.understanding import library_table
from drkd_jax.weights.opening import load
from tests.weights.small import foreign, random_arrays

TWO_STAGE = {"backbone": {"width": 8}, "channels": 16}
ONE_STAGE = TWO_STAGE | {"extra": "conv_c5", "min_level": 3, "max_level": 7}


def zoo(settings, part="pyramid"):
    """(our arrays, the same with Detectron2's names)."""
    arrays = random_arrays(part, settings, 0)
    return arrays, give(arrays, library_table("detectron2", arrays, part == "pyramid"))


def write(path, arrays, protocol=2):
    content = {"model": arrays, "__author__": "Detectron2 Model Zoo", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("settings", [TWO_STAGE, ONE_STAGE])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_pickle_of_the_zoo_is_a_backbone_and_a_pyramid(settings, protocol, tmp_path):
    arrays, theirs = zoo(settings)
    assert "backbone.bottom_up.res2.0.conv1.norm.running_var" in theirs
    heads = {"roi_heads.box_predictor.cls_score.weight": np.zeros((4, 24), np.float32)}
    heads |= {"pixel_mean": np.float32([[[103.53]], [[116.28]], [[123.675]]])}
    heads |= {"pixel_std": np.ones((3, 1, 1), np.float32)}
    path = write(tmp_path / "model_final.pkl", theirs | heads, protocol)
    weights = load(path)
    assert (weights.about.part, weights.about.source["library"]) == ("pyramid", "detectron2")
    assert weights.about.source["form"] == "pickle"
    for name, array in arrays.items():
        np.testing.assert_array_equal(weights.arrays[name], array, err_msg=name)
    own = weights.about.settings
    assert own["backbone"]["style"] == "caffe"
    assert own.get("extra_relu", True)
    assert {key: own[key] for key in ("extra", "max_level")} == (
        {"extra": "pool", "max_level": 6}
        if settings is TWO_STAGE
        else {"extra": "conv_c5", "max_level": 7}
    )
    assert (weights.about.data["channels"], weights.about.data["std"]) == ("bgr", (1.0, 1.0, 1.0))
    assert weights.report.skipped["roi_heads.box_predictor.cls_score.weight"] == (
        "a head that is not ours: backbone and FPN are used"
    )


def test_images_in_rgb_are_those_of_torchvision_s_backbones(tmp_path):
    theirs = zoo(TWO_STAGE)[1]
    mean = np.float32([123.675, 116.28, 103.53]).reshape(3, 1, 1)
    theirs |= {"pixel_mean": mean, "pixel_std": np.float32([58.395, 57.12, 57.375])}
    about = load(write(tmp_path / "x.pkl", theirs)).about
    assert (about.settings["backbone"]["style"], about.data["channels"]) == ("pytorch", "rgb")


def test_a_bare_backbone_and_wrapped_names_in_safetensors(tmp_path):
    arrays, theirs = zoo({"backbone": {"width": 8, "dcn": "v1"}}, "backbone")
    assert "res3.0.conv2_offset.weight" in theirs
    weights = load(write(tmp_path / "R-50.pkl", theirs))
    assert (weights.about.part, weights.arrays.keys()) == ("backbone", arrays.keys())
    wrapped = {f"model.{key}": np.ascontiguousarray(v) for key, v in zoo(TWO_STAGE)[1].items()}
    save_file(wrapped, tmp_path / "x.safetensors")
    assert load(tmp_path / "x.safetensors").about.part == "pyramid"


def test_caffe2_s_blobs_are_known_by_name(tmp_path):
    blobs = {"conv1_w": np.zeros((8, 3, 7, 7), np.float32), "res2_0_branch2a_bn_s": np.zeros(8)}
    for arrays in (blobs, {"blobs": blobs}):
        (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(arrays, 2))
        with pytest.raises(UserError, match="blobs of Detectron's Caffe2"):
            load(tmp_path / "R-50.pkl")


def test_it_is_another_library_s(tmp_path):
    path = write(tmp_path / "x.pkl", zoo(TWO_STAGE)[1])
    with pytest.raises(UserError, match="its keys are those of detectron2, not of mmdet"):
        load(path, library="mmdet")
    with pytest.raises(UserError, match=r"heads of ours have no names in Detectron2"):
        library_table("detectron2", foreign("mmdet retinanet")[0])


ARRAYS = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
    np.arange(6, dtype=">f4"),
    np.arange(3, dtype=np.float16),
    np.array(7, np.int64),
    np.zeros((0, 2), np.float32),
]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_numpy_arrays_of_a_pickle_are_what_they_were(protocol, tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({str(i): array for i, array in enumerate(ARRAYS)}, protocol))
    found = read_foreign(path)
    for i, array in enumerate(ARRAYS):
        assert found.arrays[str(i)].shape == array.shape
        np.testing.assert_array_equal(found.arrays[str(i)], array)


class Calls:
    def __reduce__(self):
        return os.system, ("touch owned",)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_runs_no_code(protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for evil in (
        {"model": {"w": np.zeros(3, np.float32)}, "x": Calls()},
        {"w": np.array([Calls()], object)},
    ):
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(evil, protocol))
        with pytest.raises(UserError, match=r"refused: "):
            read_foreign(tmp_path / "x.pkl")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_arrays_of_no_numbers_beside_the_weights_are_left_alone(protocol, tmp_path):
    beside = {"names": np.array(["nut", "bolt"]), "of": np.array([None, 1], object)}
    content = {"model": {"w": ARRAYS[0], "names": beside["names"]}, "meta": beside}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol))
    found = read_foreign(tmp_path / "x.pkl")
    assert list(found.arrays) == ["model.w"]
    assert "model.names" in found.left_out


def test_an_array_that_its_bytes_do_not_fill_is_refused(tmp_path):
    whole = pickle.dumps({"w": np.zeros(1000, np.float32)}, 4)
    damaged = whole.replace(b"M\xe8\x03\x85", b"M\xe9\x03\x85")  # 1000 becomes 1001
    assert damaged != whole
    (tmp_path / "x.pkl").write_bytes(damaged)
    with pytest.raises(UserError, match="with 4000 bytes"):
        read_foreign(tmp_path / "x.pkl")


@pytest.mark.parametrize("library", ["mmdet", "detectron2"])
@pytest.mark.parametrize("wrapped", ["", "model."])
def test_a_detector_without_a_pyramid_is_told_from_a_damaged_one(library, wrapped, tmp_path):
    """The backbone ends at C4, and the fourth stage belongs to the head of the regions."""
    arrays = random_arrays("backbone", {"backbone": {"width": 8}}, 0)
    bare = give(arrays, library_table(library, arrays, False))
    last, start, head = {
        "mmdet": ("layer4.", "roi_head.shared_head.", "roi_head.bbox_head.fc_cls.weight"),
        "detectron2": ("res5.", "roi_heads.", "roi_heads.box_predictor.cls_score.weight"),
    }[library]
    heads = {head: np.zeros((4, 24), np.float32)}
    parts = {(start if key.startswith(last) else "backbone.") + key: v for key, v in bare.items()}
    save_file({wrapped + k: v for k, v in (parts | heads).items()}, tmp_path / "c4.safetensors")
    with pytest.raises(UserError, match=r"c4\.safetensors: its backbone ends at C4 .*with an FPN"):
        load(tmp_path / "c4.safetensors")


def test_a_detector_of_detectron2_with_a_dilated_stage_is_named(tmp_path):
    arrays = random_arrays("backbone", {"backbone": {"width": 8}}, 0)
    bare = give(arrays, library_table("detectron2", arrays, False))
    heads = {"roi_heads.box_predictor.cls_score.weight": np.zeros((4, 24), np.float32)}
    save_file({f"backbone.{k}": v for k, v in bare.items()} | heads, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"x\.safetensors: .* without FPN.*DC5"):
        load(tmp_path / "x.safetensors")
