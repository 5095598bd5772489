"""The demo's three runs on drawn pictures: ``teacher:DETECTOR``, ``student:...``, ``drkd:...``.

Small enough for a laptop: see ``python -m drkd_jax demo``. The student of ``student`` and of
``drkd`` is the same, with the same seed and the same number of steps.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common

TRAIN, VAL = "shapes:1600:0", "shapes:240:1"
STEPS = {"teacher": 900, "student": 450, "drkd": 450}
# name: width of the backbone, channels of the pyramid
SIZES = {"teacher": (32, 64), "student": (12, 32), "drkd": (12, 32)}
DEPTHS = {"teacher": 34, "student": 18, "drkd": 18}


def get_config(name: str | None = None) -> ConfigDict:
    role, _, detector = (name or "student:retinanet").partition(":")
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
    config.train.update(
        batch_size=8,
        steps=STEPS[role],
        learning_rate=0.02,
        warmup_steps=50,
        warmup_factor=0.01,
        decay_at=(0.7, 0.9),  # shares of the run
        clip_norm=10.0,
        log_every=25,
        checkpoint_every=150,
        eval_every=0,
    )
    if role == "drkd":
        common.with_teacher(config, "")
        config.teacher.dtype = "float32"
        config.distill = ConfigDict(
            {
                "pixel_relation": {"weight": 1.0, "nodes": (16,)},
                "instance_relation": {"weight": 1.0},
                "instance_feature": {"weight": 1.0},
            }
        )
    return config


def model(detector: str, role: str) -> ConfigDict:
    """Full detectors with small numbers; anchors start at 8 pixels, since boxes do at 6."""
    width, channels = SIZES[role]
    settings = common.retinanet() if detector == "retinanet" else common.faster_rcnn()
    settings.backbone.update(depth=DEPTHS[role], width=width, norm="gn", frozen_stages=0)
    settings.channels = channels
    if detector == "retinanet":
        settings.update(head_convs=2, anchors={"scale": 2.0, "octaves": 3})
    else:
        settings.update(
            fc=128,
            anchors={"scale": 4.0},
            proposals={"pre_nms": 300, "max_out": 200, "pre_nms_test": 200, "max_out_test": 100},
            sampler={"rpn": 128, "roi": 64},
        )
    return settings
