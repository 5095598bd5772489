"""A detector that cannot learn four pictures by heart learns nothing."""

import pytest

from configs import overfit
from drkd_jax.training.loop import train


@pytest.mark.usefixtures("whole_compile")
@pytest.mark.parametrize(("detector", "goal"), [("retinanet", 0.95), ("faster_rcnn", 0.85)])
def test_learns_four_pictures_by_heart(detector, goal, tmp_path):
    config = overfit.get_config(detector)
    config.data.train = config.data.val = "shapes:4:3"
    config.data.update(canvases=((128, 128),), shorter=128, longer=128)
    config.eval.batch_size = 4
    config.student.backbone.depth, config.student.max_level = 10, 5
    config.train.update(batch_size=4, steps=160, checkpoint_every=160, eval_every=0)
    summary = train(config.to_dict(), tmp_path)
    assert summary["final"]["AP50"] >= goal
