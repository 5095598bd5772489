"""Overfits eight images from scratch, to check that a detector learns at all.

``--config=configs/overfit.py:retinanet`` or ``:faster_rcnn``; ``benchmarks/overfit.py`` runs it on
eight real images and draws the curve.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from drkd_jax.recipes import common

STEPS = 500


def get_config(name: str | None = None) -> ConfigDict:
    if name == "tiny":
        return common.tiny(get_config("retinanet"))
    config = common.base()
    config.data.update(
        train="shapes:8",
        val="shapes:8",  # the same images: generalisation does not matter here
        canvases=((192, 256), (256, 192)),
        shorter=192,
        longer=256,
        max_boxes=20,
        flip=0.0,
    )
    config.student.update(common.small_detector(name or "retinanet"))
    config.eval.batch_size = 8
    config.train.update(
        batch_size=8,
        steps=STEPS,
        learning_rate=0.02,
        warmup_steps=20,
        warmup_factor=0.01,
        decay_at=(0.8,),
        weight_decay=0.0,
        clip_norm=5.0,
        log_every=25,
        checkpoint_every=STEPS,
        eval_every=STEPS // 5,
    )
    return config
