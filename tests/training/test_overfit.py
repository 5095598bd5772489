"""A detector that cannot learn four pictures by heart learns nothing."""

import pytest

from configs import overfit
from drkd_jax.training.loop import train


@pytest.mark.parametrize(
    ("detector", "goal", "side", "steps"),
    [("retinanet", 0.95, 96, 120), ("faster_rcnn", 0.85, 128, 160)],
)
def test_learns_four_pictures_by_heart(detector, goal, side, steps, tmp_path):
    config = overfit.get_config(detector)
    config.data.train = config.data.val = "shapes:4:3"
    config.data.update(canvases=((side, side),), shorter=side, longer=side)
    config.eval.batch_size = 4
    config.student.backbone.depth, config.student.max_level = 10, 5
    config.train.update(batch_size=4, steps=steps, checkpoint_every=steps, eval_every=0)
    summary = train(config.to_dict(), tmp_path)
    assert summary["final"]["AP50"] >= goal
