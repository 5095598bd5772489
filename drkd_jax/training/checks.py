"""Checks that a run's settings, models and canvases fit together; each error names the key."""

from __future__ import annotations

from flax import nnx

from drkd_jax import models
from drkd_jax.data.config import PipelineConfig
from drkd_jax.errors import UserError
from drkd_jax.step.settings import TrainSettings
from drkd_jax.words import counted


def check_parts(settings: TrainSettings, devices: int) -> None:
    """Refuses a batch that cannot be split into equal parts.

    Raises:
        UserError: names the batch sizes that fit.
    """
    each = devices * settings.accumulate
    if settings.batch_size % each:
        above = -(-settings.batch_size // each) * each
        nearest = f"{above - each} or {above}" if above > each else f"{above}"
        raise UserError(
            f"config.train.accumulate = {settings.accumulate}: {settings.batch_size} images on "
            f"{counted(devices, 'device')} do not divide into so many equal parts; take another "
            f"number or config.train.batch_size = {nearest}"
        )


def check_student(
    student: models.Detector, settings: TrainSettings, pipeline: PipelineConfig
) -> None:
    """Refuses a student that these settings cannot train.

    Raises:
        UserError: batch statistics with pmap, or canvases that its pyramid cannot halve evenly.
    """
    if settings.parallel == "pmap" and nnx.state(student, nnx.BatchStat):
        raise UserError(
            "config.train.parallel = 'pmap' has no batch statistics over all devices, which "
            "config.student.backbone.norm = 'bn' needs: take 'jit', or norm 'frozen_bn' or 'gn'"
        )
    check_canvases(pipeline, student.stride, "student")


def check_canvases(pipeline: PipelineConfig, stride: int, who: str) -> None:
    """Refuses canvases that the pyramid cannot halve evenly.

    Raises:
        UserError: names the canvas and the nearest size that fits.
    """
    for canvas in pipeline.canvases:
        if any(side % stride for side in canvas):
            fit = tuple(-(-side // stride) * stride for side in canvas)
            raise UserError(
                f"config.data.canvases: {canvas} is not a multiple of the {who}'s stride {stride}; "
                f"use {fit}"
            )
