"""The demo's three runs on drawn pictures: ``teacher:DETECTOR``, ``student:...``, ``drkd:...``.

Small enough for a laptop: see ``python -m drkd_jax demo``. The student of ``student`` and of
``drkd`` is the same, with the same seed and the same number of steps.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common

TRAIN, VAL = "shapes:2400:0", "shapes:160:1"
# Two cores have to be through within ten minutes; Faster R-CNN's steps are the longer ones.
STEPS = {
    "retinanet": {"teacher": 520, "student": 360, "drkd": 360},
    "faster_rcnn": {"teacher": 420, "student": 300, "drkd": 300},
}
# name: width of the backbone, channels of the pyramid
SIZES = {"teacher": (24, 48), "student": (12, 32), "drkd": (12, 32)}


def get_config(name: str | None = None) -> ConfigDict:
    if name == "tiny":
        return common.tiny(get_config("drkd:retinanet"))
    role, _, detector = (name or "student").partition(":")
    detector = detector or "retinanet"
    config = common.base()
    config.data.update(
        train=TRAIN,
        val=VAL,
        canvases=((128, 192), (192, 128)),
        shorter=128,
        longer=192,
        max_boxes=10,
    )
    config.student.update(model(detector, role))
    config.eval.batch_size = 20
    config.train.update(
        batch_size=8,
        steps=STEPS[detector][role],
        log_every=25,
        checkpoint_every=200,
        eval_every=-(-STEPS[detector][role] // 3),
        **common.small_optimizer(),
    )
    if role == "drkd":
        common.with_teacher(config, "")
        config.teacher.dtype = "float32"
        config.distill = common.small_distillation()
    return config


def model(detector: str, role: str) -> ConfigDict:
    """The detector of one of the three runs."""
    settings = common.small_detector(detector)
    settings.backbone.width, settings.channels = SIZES[role]
    return settings
