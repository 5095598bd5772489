"""The paper's training on COCO 2017: the common part of its four recipes.

24 epochs, images of 800 x 1333, 16 images per step, SGD, warm-up over 500 steps, learning rate
divided by 10 after epochs 16 and 22, stem and first stage frozen, weight decay on all trained
parameters.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from drkd_jax.recipes import common

# The files as published; they need no conversion. If one is missing, the error message gives the
# short name that fetches it (docs/weights.md).
BACKBONE_INIT = "weights/resnet50-0676ba61.pth"  # torchvision, ResNet50_Weights.IMAGENET1K_V1
TEACHERS = {  # mmdetection's model zoo
    "faster_rcnn": "weights/cascade_mask_rcnn_x101_32x4d_fpn_dconv_c3-c5_1x_coco-e75f90c8.pth",
    "retinanet": "weights/retinanet_x101_64x4d_fpn_1x_coco_20200130-366f5af1.pth",
}


def recipe(student: ConfigDict, learning_rate: float) -> ConfigDict:
    """A plain student with the paper's schedule, from ImageNet weights."""
    config = common.base()
    config.data.train = "tfds:coco/2017:train"
    config.data.val = "tfds:coco/2017:validation"
    config.student.update(student)
    config.student.init = BACKBONE_INIT
    config.train.epochs = 24.0
    config.train.decay_at = (16.0, 22.0)
    config.train.learning_rate = learning_rate
    config.train.checkpoint_every = 2000
    config.train.eval_every = 7330  # one epoch
    return config


def distilled(config: ConfigDict, **weights: float) -> ConfigDict:
    """Distils the student from the paper's frozen teacher, with the official form of every term.

    The teacher's model is read from its file. The weights, by term, fit plain norms over two images
    per device, as in the author's training; they are not meant for the default form.
    """
    common.with_teacher(config, TEACHERS[config.student.detector])
    config.distill = common.distillation()
    for term, weight in weights.items():
        config.distill[term].update(form="official", weight=weight)
    config.distill.images_per_device = 2
    return config


def named(config: ConfigDict, name: str | None) -> ConfigDict:
    """The recipe in the form named after the colon of ``--config=FILE.py:FORM``."""
    if name in (None, ""):
        return config
    if name == "tiny":
        return common.tiny(config)
    raise ValueError(f"unknown form '{name}' of this recipe; there is only 'tiny'")
