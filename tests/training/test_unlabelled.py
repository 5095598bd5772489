"""A run with pictures that have no labels: who learns what from them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drkd_jax.data.pipeline import train_loader
from drkd_jax.errors import UserError
from drkd_jax.step.train_step import loss_terms
from drkd_jax.training.describe import describe, findings
from drkd_jax.training.setup import build_run
from tests.training import tiny

DETECTION = {
    "retinanet": ("cls_loss", "box_loss"),
    "faster_rcnn": ("rpn_cls_loss", "rpn_box_loss", "roi_cls_loss", "roi_box_loss"),
}


def built(detector="retinanet", **data):
    config = tiny.config(detector, distilled=True)
    config["data"] |= {"canvases": ((64, 96),), "unlabelled": "shapes:24:9", **data}
    return build_run(config)


@pytest.mark.parametrize("detector", ["retinanet", "faster_rcnn"])
def test_detection_sees_the_labelled_and_the_pixel_relation_all(detector):
    run = built(detector)
    batch = next(train_loader(run.train_source, run.pipeline))
    labelled = np.asarray(batch.index) < run.train_source.num_labelled
    assert 0 < labelled.sum() < len(labelled)
    assert not np.asarray(batch.valid)[~labelled].any()

    @jax.jit
    def values(given):
        state, teacher = run.state, run.teacher_arrays
        arrays = state.params, state.model_state, teacher
        found = loss_terms(run.recipe, *arrays, given, jnp.int32(0))
        return found[1][0]

    mixed = values(batch)
    # The others as filling pictures: their pixels are there and count nowhere.
    without = values(batch._replace(picture_valid=labelled))
    for name in DETECTION[detector]:
        np.testing.assert_allclose(mixed[name], without[name], rtol=1e-6)
    # No boxes, nothing to compare; a feature's scale is that of all pictures' maps.
    relation = "instance_relation"
    np.testing.assert_allclose(mixed[relation], without[relation], rtol=1e-5)
    every = values(batch._replace(index=np.arange(4, dtype=np.int32)))  # all of them labelled
    assert float(mixed["pixel_relation"]) == float(every["pixel_relation"])
    assert float(mixed["pixel_relation"]) != float(without["pixel_relation"])
    assert float(mixed["box_loss" if detector == "retinanet" else "roi_cls_loss"]) != float(
        every["box_loss" if detector == "retinanet" else "roi_cls_loss"]
    )

    index = np.where(labelled, -1, batch.index)
    none = values(batch._replace(index=index, picture_valid=~labelled))
    assert all(float(none[name]) == 0 for name in DETECTION[detector])
    assert all(np.isfinite(float(value)) for value in none.values())
    assert float(none["pixel_relation"]) > 0


def test_a_run_says_what_it_learns_from_and_warns_of_nothing():
    run, said = built(), []
    lines = describe(run, 0)
    (line,) = (line for line in lines if line.startswith("unlabelled"))
    assert line.startswith("unlabelled shapes:24:9: 24 pictures that are not in train, ")
    assert any(line.startswith("train      shapes:24:0: 24 pictures, ") for line in lines)
    findings(run, said.append)
    assert not any("shapes-9" in line for line in said)


def test_pictures_without_labels_want_a_teacher():
    config = tiny.config()
    config["data"]["unlabelled"] = "shapes:4:9"
    with pytest.raises(UserError, match=r"data\.unlabelled is set and config.distill is not"):
        build_run(config)
