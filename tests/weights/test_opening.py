"""From files of any kind to arrays by our names, and back, exactly."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from drkd_jax.errors import UserError
from drkd_jax.weights.libraries.key_report import give
from drkd_jax.weights.libraries.mmdet import read
from drkd_jax.weights.libraries.understanding import library_table
from drkd_jax.weights.loaded import check_image
from drkd_jax.weights.opening import load
from drkd_jax.weights.ours import write_ours
from tests.weights.small import MODELS, foreign, random_arrays


def assert_same(found, wanted):
    assert set(found) == set(wanted)
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize(
    "image",
    [
        np.ones((4, 6, 3)),  # of 0 to 1: bytes of them are black
        np.ones((4, 6), np.uint8),
        np.ones((4, 6, 4), np.uint8),
        np.ones((1, 4, 6, 3), np.uint8),
        [[[1, 2, 3]]],
        "a.jpg",
    ],
    ids=["floats", "grey", "alpha", "batch", "list", "path"],
)
def test_what_is_no_image_in_bytes_is_refused(image):
    with pytest.raises(UserError, match=r"an RGB array \[H, W, 3\] of uint8, not \("):
        check_image(image)


def test_an_image_in_bytes_is_taken():
    check_image(np.ones((4, 6, 3), np.uint8))


@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_goes_there_and_back_exactly(name, tmp_path):
    library, part, settings, num_classes, _ = MODELS[name]
    arrays, theirs = foreign(name)
    save_file(theirs, tmp_path / "x.safetensors")
    weights = load(tmp_path / "x.safetensors", library=library)
    assert (weights.about.part, weights.about.num_classes) == (part, num_classes)
    assert_same(weights.arrays, arrays)
    for key, value in settings.items():
        if key == "backbone":
            assert weights.about.settings[key].items() >= value.items()
        else:
            assert weights.about.settings[key] == value

    write_ours(tmp_path / "ours.safetensors", weights.arrays, weights.about)
    again = load(tmp_path / "ours.safetensors")
    assert_same(again.arrays, arrays)
    texts = [json.dumps(w.about.settings, sort_keys=True) for w in (again, weights)]
    assert texts[0] == texts[1]
    assert again.about.source["sha256"] == weights.about.source["sha256"]


@pytest.fixture(scope="module")
def retina():
    return foreign("mmdet retinanet")[1]


def save(tmp_path, theirs, name="x.safetensors"):
    save_file({key: np.ascontiguousarray(value) for key, value in theirs.items()}, tmp_path / name)
    return tmp_path / name


def test_a_config_that_differs_from_what_shows_is_refused(retina, tmp_path):
    path = save(tmp_path, retina)
    config = {"backbone": {"depth": 101, "width": 8}, "channels": 24}
    with pytest.raises(UserError, match=r"backbone.depth is 101 in the config and 18 in the file"):
        load(path, config)
    with pytest.raises(UserError, match=r"channels is 24 in the config and 16 in the file"):
        load(path, config)
    weights = load(path, {"backbone": {"depth": 18, "norm": "bn"}, "extra_relu": True})
    assert weights.about.settings["backbone"]["norm"] == "bn"
    assert weights.about.settings["extra_relu"] is True


def test_older_names_are_known(tmp_path):
    arrays, theirs = foreign("mmdet dcn v1")
    old = {key.replace(".conv_offset.", "_offset."): value for key, value in theirs.items()}
    assert old.keys() != theirs.keys()
    assert_same(load(save(tmp_path, old)).arrays, arrays)

    arrays, theirs = foreign("torchvision faster_rcnn")
    old = {
        key.replace("_blocks.0.0.", "_blocks.0.").replace("rpn.head.conv.0.0.", "rpn.head.conv."): v
        for key, v in theirs.items()
    }
    for level in "123":
        old = {key.replace(f"_blocks.{level}.0.", f"_blocks.{level}."): v for key, v in old.items()}
    assert_same(load(save(tmp_path, old)).arrays, arrays)

    arrays, theirs = foreign("torchvision retinanet")
    old = {
        key.replace(".conv.0.0.", ".conv.0.").replace(".conv.1.0.", ".conv.2."): value
        for key, value in theirs.items()
    }
    assert_same(load(save(tmp_path, old)).arrays, arrays)


def test_what_other_training_programs_add_is_skipped_with_its_reason(retina, tmp_path):
    extra = {
        "backbone.bn1.num_batches_tracked": np.int64(3),
        "roi_head.mask_head.convs.0.conv.weight": np.zeros((2, 2)),
    }
    weights = load(save(tmp_path, {**retina, **extra}))
    assert weights.report.skipped == {
        "backbone.bn1.num_batches_tracked": "a counter that nothing uses",
        "roi_head.mask_head.convs.0.conv.weight": "the mask head: masks are not predicted here",
    }
    assert "1 of the mask head skipped" in weights.origin


def test_a_head_that_is_not_ours_leaves_backbone_and_pyramid(retina, tmp_path):
    theirs = {key.replace("retina_cls", "atss_cls"): value for key, value in retina.items()}
    weights = load(save(tmp_path, theirs))
    assert weights.about.part == "pyramid"
    assert all(name.startswith(("backbone.", "neck.")) for name in weights.arrays)
    assert set(weights.report.skipped.values()) == {
        "a head that is not ours: backbone and FPN are used"
    }


def test_a_backbone_in_the_style_of_caffe_is_built_so(retina, tmp_path):
    fifty = foreign("mmdet retinanet 50")[1]
    weights = load(save(tmp_path, fifty, "retinanet_r50_caffe_fpn.safetensors"))
    assert weights.about.settings["backbone"]["style"] == "caffe"
    assert (weights.about.data["channels"], weights.about.data["std"]) == ("bgr", (1.0, 1.0, 1.0))
    weights = load(save(tmp_path, fifty), {"backbone": {"style": "caffe"}})
    assert weights.about.settings["backbone"]["style"] == "caffe"
    assert load(save(tmp_path, fifty)).about.settings["backbone"]["style"] == "pytorch"
    # Blocks of two 3x3 convolutions have their stride in the first of them in either style.
    small = load(save(tmp_path, retina, "retinanet_r18_caffe_fpn.safetensors"))
    assert small.about.settings["backbone"]["style"] == "pytorch"
    # A bare backbone says it in its name or in its file's metadata.
    bare = {k.removeprefix("backbone."): v for k, v in fifty.items() if k.startswith("backbone.")}
    save_file(bare, tmp_path / "x.safetensors", {"style": "caffe: stride in the first 1x1"})
    for path in (tmp_path / "x.safetensors", save(tmp_path, bare, "resnet50_msra-5.safetensors")):
        about = load(path).about
        assert (about.part, about.settings["backbone"]["style"]) == ("backbone", "caffe")
        assert about.data["channels"] == "bgr"


def test_a_stem_of_another_width_than_the_stages_is_read(tmp_path):
    settings = {"backbone": {"width": 8, "stem": 16}}
    arrays = random_arrays("backbone", settings, 0)
    theirs = give(arrays, library_table("mmdet", arrays, False))
    weights = load(save(tmp_path, theirs))
    assert weights.about.settings["backbone"].items() >= settings["backbone"].items()
    assert_same(weights.arrays, arrays)


def test_norms_of_a_pyramid_are_folded_exactly(retina, tmp_path):
    rng = np.random.default_rng(1)
    plain, norms = dict(retina), {}
    for key in retina:
        if key.startswith("neck.") and key.endswith("conv.bias"):
            module, size = key.removesuffix("conv.bias"), retina[key].shape
            del plain[key]
            for leaf in ("weight", "bias", "running_mean", "running_var"):
                norms[f"{module}bn.{leaf}"] = rng.uniform(0.5, 1.5, size).astype(np.float32)
    weights = load(save(tmp_path, plain | norms))
    x = rng.standard_normal(plain["neck.lateral_convs.0.conv.weight"].shape[1])
    kernel = plain["neck.lateral_convs.0.conv.weight"][:, :, 0, 0].astype(np.float64)
    scale, shift, mean, var = (
        norms[f"neck.lateral_convs.0.bn.{leaf}"].astype(np.float64)
        for leaf in ("weight", "bias", "running_mean", "running_var")
    )
    wanted = (kernel @ x - mean) / np.sqrt(var + 1e-5) * scale + shift
    own = weights.arrays["neck.laterals.0.kernel"][0, 0].astype(np.float64)
    found = x @ own + weights.arrays["neck.laterals.0.bias"]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)
    assert set(norms) <= set(weights.report.used)
    assert "8 batch norms of pyramid and heads folded" in "\n".join(weights.lines)
    for shape in ((7,), (1,), (16, 1)):
        wrong = {k: v if "mean" not in k else np.ones(shape, np.float32) for k, v in norms.items()}
        with pytest.raises(UserError, match=r"running_mean is of shape .* before it of \(16,\)"):
            load(save(tmp_path, plain | wrong))
    group = {k.replace(".bn.", ".gn."): v for k, v in norms.items() if "running" not in k}
    with pytest.raises(UserError, match=r"a norm in the pyramid without running statistics"):
        load(save(tmp_path, plain | group))


def test_files_that_mean_something_else_are_refused(retina, tmp_path):
    old = {key.replace("roi_head.", ""): v for key, v in foreign("mmdet faster_rcnn")[1].items()}
    with pytest.raises(UserError, match="a two-stage detector of mmdetection 1"):
        load(save(tmp_path, old))
    with pytest.raises(UserError, match="its keys are those of mmdet, not of torchvision"):
        load(save(tmp_path, retina), library="torchvision")
    with pytest.raises(UserError, match="no ResNet or ResNeXt"):
        load(save(tmp_path, {"weight": np.zeros((2, 2), np.float32)}))


def test_a_semantic_head_changes_the_boxes(tmp_path):
    theirs = dict(foreign("mmdet cascade_rcnn")[1])
    theirs["roi_head.semantic_head.convs.0.conv.weight"] = np.zeros((2, 2), np.float32)
    path = save(tmp_path, theirs)
    with pytest.raises(UserError, match=r"roi_head.semantic_head .*part=pyramid"):
        load(path)
    assert load(path, {"part": "pyramid"}).about.part == "pyramid"


def test_class_names_come_from_the_file_or_from_coco(tmp_path):
    shapes = {key: value.shape for key, value in foreign("mmdet retinanet")[1].items()}
    assert read(shapes, {"CLASSES": ("a", "b", "c")}, "x").class_names == ("a", "b", "c")
    meta = {"dataset_meta": {"classes": ["a", "b", "c"]}}
    assert read(shapes, meta, "x").class_names == ("a", "b", "c")
    assert read(shapes, {"CLASSES": ("a", "b")}, "x").class_names == ()
    assert read(shapes, {"CLASSES": [["a"], 1, 2]}, "x").class_names == ()
    assert read(shapes, {"CLASSES": ["a", "b", "c" * 2000]}, "x").class_names == ()
    coco = {key: value.shape for key, value in foreign("mmdet retinanet conv_p5")[1].items()}
    assert read(coco, {}, "x").class_names[:2] == ("person", "bicycle")


def test_an_array_without_numbers_is_left_out(retina, tmp_path):
    """Its other sides may have any size: a short file could claim 2^40 classes."""
    empty = {"data_offsets": [0, 0], "dtype": "F32"}
    path = save(tmp_path, {**retina, "state": np.zeros((0, 3), np.float32)})
    assert load(path).report.skipped == {"state": "an array without numbers"}
    path = save(tmp_path, {k: v for k, v in retina.items() if "retina_cls" not in k})
    size, header = int.from_bytes(path.read_bytes()[:8], "little"), path.read_bytes()
    said = json.loads(header[8 : 8 + size])
    said["bbox_head.retina_cls.weight"] = {**empty, "shape": [9 << 40, 0, 3, 3]}
    said["bbox_head.retina_cls.bias"] = {**empty, "shape": [9 << 40, 0]}
    changed = json.dumps(said).encode()
    path.write_bytes(len(changed).to_bytes(8, "little") + changed + header[8 + size :])
    weights = load(path)
    assert weights.about.part == "pyramid"  # as without them
    assert weights.report.skipped["bbox_head.retina_cls.weight"] == "an array without numbers"


def test_a_file_that_fits_no_settings_is_named(retina, tmp_path):
    path = save(tmp_path, retina)
    for config in ({"test": {"max_out": 0}}, {"nobody": 1}):
        with pytest.raises(UserError, match=r"x\.safetensors: "):
            load(path, config)
    theirs = dict(foreign("mmdet faster_rcnn")[1])
    theirs["roi_head.bbox_head.fc_cls.weight"] = theirs["roi_head.bbox_head.fc_cls.weight"][:1]
    with pytest.raises(UserError, match=r"x\.safetensors: num_classes is 0"):
        load(save(tmp_path, theirs))


@pytest.mark.filterwarnings("ignore::numpy.exceptions.ComplexWarning")
@pytest.mark.parametrize(
    ("key", "change", "words"),
    [
        ("backbone.conv1.weight", lambda v: v * np.nan, "no finite numbers"),
        ("neck.fpn_convs.1.conv.bias", lambda v: v + np.inf, "no finite numbers"),
        ("bbox_head.retina_cls.weight", lambda v: v.astype(np.int8), "of int8: quantised"),
        ("bbox_head.retina_cls.weight", lambda v: v.astype(np.complex64), "complex weights"),
        ("backbone.bn1.running_var", lambda v: -v, "variances below 0"),
    ],
)
def test_arrays_that_are_no_weights_are_named(key, change, words, retina, tmp_path):
    with pytest.raises(UserError, match=f"{key} .*{words}"):
        load(save(tmp_path, {**retina, key: change(retina[key])}))


def test_class_names_beside_torchvision_s_weights(tmp_path):
    theirs = foreign("torchvision faster_rcnn")[1]
    for names in (["nut", "bolt", "pin"], ["__background__", "nut", "bolt", "pin"]):
        save_file(theirs, tmp_path / "x.safetensors", {"classes": json.dumps(names)})
        weights = load(tmp_path / "x.safetensors")
        assert weights.about.categories == ((1, "nut"), (2, "bolt"), (3, "pin"))
    save_file(theirs, tmp_path / "x.safetensors", {"classes": "[" * 100_000})
    assert load(tmp_path / "x.safetensors").about.categories == ()


def test_a_retinanet_of_torchvision_that_counted_the_background(tmp_path):
    theirs = foreign("torchvision retinanet")[1]  # three outputs
    said = load(save(tmp_path, theirs))
    assert (said.about.num_classes, said.detector().class_ids) == (3, (0, 1, 2))
    assert any("set 1 to 2 where its training counted the background" in x for x in said.lines)
    for names in (["__background__", "nut", "bolt"], ["nut", "bolt"]):
        path = tmp_path / "named.safetensors"
        save_file(theirs, path, {"classes": json.dumps(names)})
        found = load(path)
        assert found.about.categories == ((1, "nut"), (2, "bolt"))
        detector = found.detector()
        assert (detector.num_classes, detector.head_classes) == (2, 3)
        assert detector.class_ids == (1, 2)


def test_a_user_chooses_the_classes_among_a_head_s_outputs(tmp_path):
    path = save(tmp_path, foreign("torchvision retinanet")[1])
    found = load(path, {"class_ids": [1, 2]})
    write_ours(tmp_path / "ours.safetensors", found.arrays, found.about)
    for weights in (found, load(tmp_path / "ours.safetensors")):
        detector = weights.detector()
        assert (weights.about.num_classes, detector.num_classes) == (2, 2)
        assert (detector.head_classes, detector.class_ids) == (3, (1, 2))
    with pytest.raises(UserError, match="class_ids: its head has 3 outputs"):
        load(path, {"class_ids": [1, 2, 3]})
    named = tmp_path / "named.safetensors"
    save_file(foreign("torchvision retinanet")[1], named, {"classes": '["a", "b", "c"]'})
    assert load(named, {"class_ids": [2, 0]}).about.categories == ((1, "c"), (2, "a"))
    assert load(named, {"class_ids": []}).about.num_classes == 3


def test_the_eps_that_no_file_of_torchvision_shows_is_said_where_a_run_opens(tmp_path):
    theirs = foreign("torchvision retinanet")[1]
    path = save(tmp_path, theirs)
    assert "an eps of 1e-05 (what was trained on from a COCO_V1 file needs" in load(path).origin
    for weights in (
        load(path, {"backbone": {"eps": 0.0}}),
        load(save(tmp_path, theirs, "retinanet_resnet50_fpn_coco-eeacb38b.safetensors")),
    ):
        assert weights.origin.endswith("compute with an eps of 0")
    assert "an eps" not in load(save(tmp_path, foreign("mmdet retinanet")[1])).origin
