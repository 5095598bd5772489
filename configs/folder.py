"""Your own data in COCO form, trained from scratch: ``teacher``, ``student`` or ``drkd``.

Images and models are small, so that it also trains on a CPU; raise ``shorter``, ``longer``,
``canvases``, the widths and ``steps`` for more. ``drkd`` is ``student`` with a teacher: give its
work folder in ``teacher.checkpoint``. A second colon selects the detector: ``drkd:faster_rcnn``;
the default is RetinaNet.

docs/results.md shows what this recipe reached on a set of circuit board defects, and its cost.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from drkd_jax.recipes import common

SIDE = 256  # pixels
ROLES = ("teacher", "student", "drkd")


def get_config(name: str | None = None) -> ConfigDict:
    role, _, detector = (name or "student").partition(":")
    if role == "tiny":
        return common.tiny(get_config(f"drkd:{detector}"))
    if role not in ROLES:
        raise ValueError(f"unknown form '{role}'; there are {', '.join(ROLES)} and tiny")
    config = common.base()
    config.data.update(
        canvases=((SIDE, SIDE),), shorter=SIDE, longer=SIDE, max_boxes=40, drop_empty=False
    )
    config.student.update(_model(detector or "retinanet", teacher=role == "teacher"))
    config.eval.batch_size = 16
    config.train.update(
        batch_size=4,
        steps=3000 if role == "teacher" else 800,
        log_every=50,
        checkpoint_every=500 if role == "teacher" else 200,
        eval_every=500 if role == "teacher" else 200,
        **common.small_optimizer(),
    )
    if role == "drkd":
        common.with_teacher(config, "")
        config.teacher.dtype = "float32"
        config.distill = common.small_distillation()
        if config.student.detector == "retinanet":
            # A larger weight holds back a RetinaNet with enough labels and steps. A Faster R-CNN
            # with many labels and a long run did better with 3 too (docs/results.md).
            config.distill.pixel_relation.weight = 3.0
    return config


def _model(detector: str, *, teacher: bool) -> ConfigDict:
    settings = common.small_detector(detector)
    settings.backbone.width = 16 if teacher else 8
    settings.channels = 32 if teacher else 24
    return settings
