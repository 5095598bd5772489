"""What one epoch holds: which pictures, on which canvases, in how many batches."""

from __future__ import annotations

import numpy as np

from drkd_jax.data.config import PipelineConfig
from drkd_jax.data.counts import Fits, fit_all
from drkd_jax.data.counts import padding_share as share_of
from drkd_jax.data.findings import SMALLEST_SIDE, require_boxes
from drkd_jax.data.plan import BatchPlan
from drkd_jax.data.records import Source
from drkd_jax.errors import UserError


def kept_indices(source: Source, config: PipelineConfig) -> np.ndarray:
    """Positions of the pictures that training sees.

    Source: open-mmlab/mmdetection, mmdet/datasets/coco.py (``filter_data``: no ground truth, or
    under 32 pixels). A picture that has crowd regions only counts as empty here.
    """
    if not config.drop_empty:
        return np.arange(len(source))
    metas = (source.meta(i) for i in range(len(source)))
    return np.array(
        [
            i
            for i, meta in enumerate(metas)
            if meta.num_boxes > 0 and min(meta.height, meta.width) >= SMALLEST_SIDE
        ],
        np.int64,
    )


def boxes_left_out(source: Source, config: PipelineConfig) -> int:
    """How many training boxes of one epoch find no row in ``max_boxes``."""
    counts = [source.meta(int(i)).num_boxes for i in kept_indices(source, config)]
    return sum(max(0, count - config.max_boxes) for count in counts)


def padding_share(source: Source, config: PipelineConfig) -> float:
    """The share of the canvases' pixels that an epoch of training leaves uncovered."""
    return share_of(train_fits(source, config), config)


def steps_per_epoch(source: Source, config: PipelineConfig) -> int:
    """Batches of one epoch of training; each canvas's last one may not be full."""
    return plan_batches(train_fits(source, config), config, shuffle=True).steps_per_epoch


def train_fits(source: Source, config: PipelineConfig) -> Fits:
    """How the pictures that training sees fill their canvases.

    Raises:
        UserError: none is left, or no box is, whatever ``drop_empty`` says.
    """
    require_boxes(source)
    kept = kept_indices(source, config)
    if not len(kept):
        raise UserError(
            f"{source.spec}: no picture is left to train on; all {len(source)} are without a box "
            f"or under {SMALLEST_SIDE} pixels (drop_empty = {config.drop_empty})"
        )
    return fit_all(source, config, kept)


def plan_batches(fits: Fits, config: PipelineConfig, shuffle: bool) -> BatchPlan:
    """Which pictures come in which batch; only shuffled ones are mirrored."""
    return BatchPlan(
        fits.indices,
        fits.canvas,
        config.batch_size,
        seed=config.seed,
        flip=config.flip if shuffle else 0.0,
        shuffle=shuffle,
    )
