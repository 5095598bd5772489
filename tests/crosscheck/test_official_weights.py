"""Loading the author's parameter names into our distiller."""

from __future__ import annotations

import numpy as np
import pytest
from flax import nnx

from crosscheck.case import Maker
from crosscheck.official_cases import official_cases
from crosscheck.official_weights import convert, load_official
from drkd_jax.errors import UserError
from tests.distill.common import make, pyramid, settings

SIDES = pyramid(0, 8, (4, 8, 16)), pyramid(1, 8, (4, 8, 16))


@pytest.fixture(scope="module")
def weights():
    case = next(case for case in official_cases("float32") if "three losses" in case.name)
    running = {name: value for name, value in case.arrays["c"].items() if "running" in name}
    return {**case.arrays["p"], **running}


def official(**more):
    values = settings("official")
    values["pixel_relation"]["nodes"] = (4, 4, 8)
    values["instance_relation"] = {"form": "official"}
    values.update(more)
    return make(values, *SIDES)


def test_all_parameters_arrive_and_the_missing_filter_is_told(weights):
    distiller = official()
    before = dict(nnx.to_flat_state(nnx.state(distiller)))
    before = {path: np.asarray(slot[...]) for path, slot in before.items()}
    said = load_official(distiller, {f"module.{name}": value for name, value in weights.items()})
    assert len(said) == 1
    assert "no relation filter" in said[0]
    kept = {
        path
        for path, slot in nnx.to_flat_state(nnx.state(distiller))
        if np.array_equal(before[path], slot[...])
    }
    assert {path[-2] for path in kept} <= {"filter", "norm"}  # running statistics are 0 and 1
    mix = distiller.pixel_relation.teacher[2].mix[...]
    np.testing.assert_array_equal(mix, weights["teacher_non_local.2.gcn.conv2.weight"][:, :, 0].T)


def test_regions_go_from_channel_by_channel_to_bin_by_bin():
    region = Maker("float32").normal(3, 3, 5)  # ours: y, x, channel
    theirs = region.transpose(2, 0, 1).reshape(-1)
    np.testing.assert_array_equal(convert(theirs, "region", 3), region.reshape(-1))
    weight = Maker("float32").normal(4, 45)
    np.testing.assert_allclose(
        region.reshape(-1) @ convert(weight, "from regions", 3), weight @ theirs, rtol=1e-4
    )


def test_what_does_not_fit_is_named(weights):
    lacking = {k: v for k, v in weights.items() if k != "student_relation.1.W.bias"}
    with pytest.raises(UserError, match=r"lack student_relation\.1\.W\.bias"):
        load_official(official(), lacking)
    with pytest.raises(UserError, match=r"student_non_local\.2\.conv_state\.weight.*\(8, 8\)"):
        load_official(
            official(pixel_relation={"form": "official", "nodes": (4,)}),
            weights,
        )
    with pytest.raises(UserError, match=r"pixel_relation\.form"):
        load_official(official(pixel_relation={"form": "paper"}), weights)
