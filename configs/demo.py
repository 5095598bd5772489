"""The demo's three runs on drawn images: ``teacher:DETECTOR``, ``student:...``, ``drkd:...``.

Small enough for a laptop: see ``python -m drkd_jax demo``. ``student`` and ``drkd`` train the same
student with the same seed, the same number of steps and the same few labelled images; the teacher
is trained on many.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from drkd_jax.recipes import common

SIDE = 128  # pixels
VAL = "shapes:400:1:easy"
TEACHER_TRAIN = "shapes:3000:0:easy"
STUDENT_TRAIN = "shapes:256:0:easy"  # few labels; the first of the teacher's images
TEACHER_STEPS = 1600
STUDENT_STEPS = {"retinanet": 900, "faster_rcnn": 720}
# name: width of the backbone, channels of the pyramid
SIZES = {"teacher": (16, 32), "student": (8, 24), "drkd": (8, 24)}


def get_config(name: str | None = None) -> ConfigDict:
    role, _, detector = (name or "student").partition(":")
    detector = detector or "retinanet"
    if role == "tiny":
        return common.tiny(get_config(f"drkd:{detector}"))
    if role not in SIZES:
        raise ValueError(f"unknown form '{role}'; there are {', '.join(SIZES)} and tiny")
    student = model(detector, role)
    teacher = role == "teacher"
    steps = TEACHER_STEPS if teacher else STUDENT_STEPS[detector]
    config = common.base()
    config.data.update(
        train=TEACHER_TRAIN if teacher else STUDENT_TRAIN,
        val=VAL,
        canvases=((SIDE, SIDE),),
        shorter=SIDE,
        longer=SIDE,
        max_boxes=8,
    )
    config.student.update(student)
    config.eval.batch_size = 20
    config.train.update(
        batch_size=8,
        steps=steps,
        log_every=25,
        checkpoint_every=200,
        eval_every=-(-steps // 3),
        **common.small_optimizer(),
    )
    config.train.schedule = "cosine"
    if detector == "retinanet" and not teacher:
        config.train.learning_rate = 3e-3
    if role == "drkd":
        common.with_teacher(config, "")
        config.teacher.dtype = "float32"
        config.distill = common.small_distillation()  # few labels: weight 15 for both detectors
    return config


def model(detector: str, role: str) -> ConfigDict:
    """The detector of one of the three runs."""
    settings = common.small_detector(detector)
    settings.backbone.width, settings.channels = SIZES[role]
    if detector == "retinanet":
        # Levels from P2 on: a stride of 8 is too coarse for the smallest objects (14 pixels).
        settings.update(min_level=2, max_level=6, head_convs=2 if role == "teacher" else 1)
        settings.anchors.scale = 3.5  # 14 pixels at P2
        if role != "teacher":
            settings.anchors.ratios = (1.0,)  # most objects are nearly square
    return settings
