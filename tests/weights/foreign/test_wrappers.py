"""Prefixes and wrappers around a model's names are removed and reported, or refused by name."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from drkd_jax.errors import UserError
from drkd_jax.weights.opening import load
from tests.weights.foreign.torch_writing import write_torch
from tests.weights.small import foreign


@pytest.fixture(scope="module")
def retina():
    return foreign("mmdet retinanet")[1]


@pytest.fixture(scope="module")
def backbone(retina):
    start = "backbone."
    return {k.removeprefix(start): v for k, v in retina.items() if k.startswith(start)}


def under(prefix, arrays):
    return {prefix + key: np.ascontiguousarray(value) for key, value in arrays.items()}


def write(path, arrays, form):
    """Writes a file of flat names, or torch's, with a dict for each first part of the names."""
    if form == "safetensors":
        save_file(arrays, path.with_suffix(".safetensors"))
        return path.with_suffix(".safetensors")
    nested = {}
    for key, value in arrays.items():
        first, _, rest = key.partition(".")
        nested.setdefault(first, {})[rest] = value
    write_torch(path.with_suffix(".pth"), nested if form == "nested pth" else arrays)
    return path.with_suffix(".pth")


PREFIXES = [
    *("module.", "_orig_mod.", "model.", "student.", "teacher.", "architecture.", "ema_model."),
    *("state_dict.", "model_state_dict.", "ema.", "params.", "net.", "module.module.model."),
    *("state_dict.module._orig_mod.student.", "model.architecture.", "my_own_wrapper."),
]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("form", ["safetensors", "pth", "nested pth"])
def test_a_wrapper_is_taken_off_and_said(prefix, form, retina, tmp_path):
    wrapped = under(prefix, retina) | {"optimizer.step": np.zeros(3, np.float32)}
    weights = load(write(tmp_path / "x", wrapped, form))
    ours = foreign("mmdet retinanet")[0]
    assert weights.arrays.keys() == ours.keys()
    np.testing.assert_array_equal(weights.arrays["head.cls.kernel"], ours["head.cls.kernel"])
    text = "\n".join(weights.lines)
    assert f"taken off the names of {len(retina)}" in text
    for part in prefix.split("."):
        assert part in text
    assert "outside of the model" in weights.report.skipped["optimizer.step"]


def test_modules_inside_of_the_names_are_taken_off(retina, tmp_path):
    inside = {
        key.replace("backbone.", "backbone._orig_mod.module."): v for key, v in retina.items()
    }
    weights = load(write(tmp_path / "x", under("", inside), "safetensors"))
    assert weights.about.part == "detector"


def test_one_whole_model_among_several_is_found(retina, backbone, tmp_path):
    both = under("teacher.", retina) | under("student.backbone.", backbone)
    del both["student.backbone.layer1.0.conv2.weight"]
    weights = load(write(tmp_path / "x", both, "safetensors"))
    assert weights.about.source["prefix"] == "teacher."
    assert "a part of one" in weights.report.skipped["student.backbone.conv1.weight"]


@pytest.mark.parametrize(
    "names", [("student.", "teacher."), ("model.", "ema."), ("", "ema_model.")]
)
def test_of_several_whole_models_one_has_to_be_chosen(names, retina, tmp_path):
    both = under(names[0], retina) | under(names[1], retina)
    path = write(tmp_path / "x", both, "safetensors")
    with pytest.raises(UserError, match=r"holds 2 models, under .*prefix=") as raised:
        load(path)
    assert all((name or "the root") in str(raised.value) for name in names)
    chosen = load(path, {"prefix": names[1]})
    assert chosen.about.source["prefix"] == names[1]
    assert chosen.about.part == "detector"
    with pytest.raises(UserError, match=r"no key begins with 'nobody.'; its keys begin with"):
        load(path, {"prefix": "nobody."})


def test_moco_s_query_encoder_is_the_one_that_is_used(backbone, tmp_path):
    arrays = under("state_dict.module.encoder_q.", backbone)
    arrays |= {"state_dict.module.queue": np.zeros((4, 4), np.float32)}
    arrays |= under("state_dict.module.encoder_q.fc.0.", {"weight": np.zeros((4, 4), np.float32)})
    for more in ({}, under("state_dict.module.encoder_k.", backbone)):
        weights = load(write(tmp_path / "x", arrays | more, "safetensors"))
        assert weights.about.part == "backbone"
        assert weights.report.skipped["fc.0.weight"] == "the ImageNet classifier"
        assert "state_dict.module.queue" in weights.report.skipped
        for key in more:
            assert "moving average" in weights.report.skipped[key]


def test_the_second_weights_of_mmengine_and_of_mmdetection_s_hook_are_skipped(retina, tmp_path):
    both = under("state_dict.", retina) | under("ema_state_dict.module.", retina)
    weights = load(write(tmp_path / "x", both, "safetensors"))
    assert weights.about.source["prefix"] == "state_dict."
    copies = {"ema_" + key.replace(".", "_"): value for key, value in retina.items()}
    weights = load(write(tmp_path / "y", under("", retina | copies), "safetensors"))
    assert {weights.report.skipped[key] for key in copies} == {
        "mmdetection's EMA hook: a second set of weights, swapped with the used one"
    }
    assert weights.about.part == "detector"


@pytest.mark.parametrize("counter", ["n_averaged", "steps"])  # of torch's class, of mmengine's
def test_the_counter_of_an_average_does_not_make_it_less_than_a_model(counter, retina, tmp_path):
    count = {counter: np.ones(1, np.float32)}
    average = under("module.", retina) | count
    weights = load(write(tmp_path / "x", average, "safetensors"))
    assert weights.report.skipped == {counter: "a counter of a moving average"}
    both = under("model.", retina) | under("model_ema.", average)
    path = write(tmp_path / "y", both, "safetensors")
    with pytest.raises(UserError, match=r"holds 2 models, under model\., model_ema\."):
        load(path)
    assert load(path, {"prefix": "model_ema."}).about.part == "detector"
    both = under("state_dict.", retina) | under("ema_state_dict.", average)
    weights = load(write(tmp_path / "z", both, "safetensors"))
    assert weights.about.source["prefix"] == "state_dict."
    assert "weights of the last step" in weights.report.skipped[f"ema_state_dict.{counter}"]


def test_without_a_model_the_beginnings_are_named(tmp_path):
    arrays = {"encoder.blocks.0.attn.qkv.weight": np.zeros((2, 2), np.float32)}
    with pytest.raises(UserError, match=r"its keys begin with encoder.blocks \(1\)"):
        load(write(tmp_path / "x", arrays, "safetensors"))
