"""The teachers that are included in the package, and their storage in half precision."""

from __future__ import annotations

import numpy as np
import pytest

from configs import demo as recipe
from drkd_jax.demo.teacher_file import shipped
from drkd_jax.models.filling import as_tuples
from drkd_jax.step.settings import set_keys
from drkd_jax.weights.opening import load
from drkd_jax.weights.ours import About, read_ours, write_ours

DETECTORS = ("retinanet", "faster_rcnn")


@pytest.mark.parametrize("detector", DETECTORS)
def test_a_shipped_teacher_is_small_good_and_of_the_recipe(detector):
    path = shipped(detector)
    assert path.stat().st_size <= 3_000_000
    weights = load(path)  # its arrays are those of its settings
    assert {array.dtype for array in weights.arrays.values()} == {np.dtype(np.float32)}
    assert weights.about.settings["detector"] == detector
    config = as_tuples(recipe.get_config(f"teacher:{detector}").to_dict())
    card = weights.about.source
    assert card["precision"] == "float16"
    assert (card["step"], card["seed"]) == (config["train"]["steps"], config["seed"])
    assert (card["train"], card["val"]) == (config["data"]["train"], config["data"]["val"])
    assert "--train-teacher" in card["command"]
    assert card["ap_single_precision"] >= 0.6
    settings = set_keys(config["student"])
    settings.pop("init")
    assert as_tuples(dict(weights.about.settings)) == settings


def test_a_card_stands_beside_them():
    text = (shipped("retinanet").parent / "README.md").read_text()
    for detector in DETECTORS:
        card = load(shipped(detector)).about.source
        for words in (card["command"], card["date"], f"{100 * card['ap_single_precision']:.1f}"):
            assert words in text


def test_half_precision_is_read_as_single(tmp_path):
    path = tmp_path / "half.safetensors"
    values = np.array([1.0, 1 / 3, -2e-4], np.float32)
    write_ours(path, {"a": values.astype(np.float16)}, About("detector", {}))
    (read,) = read_ours(path)[0].values()
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, values, rtol=2**-11)
