"""More detections than a detector returns by default."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from drkd_jax import models
from drkd_jax.errors import UserError
from drkd_jax.step.settings import eval_settings
from drkd_jax.training.evaluate import raise_limits
from tests.training import tiny


def test_up_to_100_the_detector_keeps_its_limits():
    assert eval_settings({}).max_detections == 100
    assert eval_settings({"max_detections": 50}).least_limit == 0
    assert eval_settings({}).least_limit == 0
    assert eval_settings({"max_detections": 250}).least_limit == 250


@pytest.mark.parametrize("count", [-1, 0, 10])
def test_too_few_are_refused(count):
    with pytest.raises(UserError, match=f"max_detections = {count}: must be more than 10"):
        eval_settings({"max_detections": count})


@pytest.mark.parametrize("detector", ["retinanet", "faster_rcnn"])
@pytest.mark.parametrize("least", [250, 100_000])  # the second is more than there are anchors
def test_so_many_rows_come_out(detector, least):
    settings = {k: v for k, v in tiny.config(detector)["student"].items() if k != "init"}
    model = models.abstract_detector(settings, 3, dtype=jnp.float32)
    before = model.settings
    raised = raise_limits(before, least)
    assert raised.test.max_out == least
    assert raised.test.pre_nms == max(before.test.pre_nms, least)
    assert raised.test.score == before.test.score
    assert raise_limits(raised, 7) == raised
    if detector == "faster_rcnn":
        assert raised.proposals.max_out_test == raised.proposals.pre_nms_test == least
        assert raised.proposals.max_out == before.proposals.max_out  # of training
    graph, state = nnx.split(model)

    def predict(arrays):
        merged = nnx.merge(graph, arrays, copy=True)
        merged.settings = raised
        images, sizes = jnp.zeros((1, 64, 96, 3)), np.array([[64, 96]], np.int32)
        return merged.predict(merged.features(images), sizes)

    found = jax.eval_shape(predict, nnx.as_pure(state))
    assert found.boxes.shape == (1, least, 4)
    assert found.valid.shape == (1, least)
