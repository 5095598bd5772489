"""Narrow detectors and small batches for the tests in this folder."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from drkd_jax import models
from drkd_jax.types import Targets

CANVAS = (64, 96)
NUM_CLASSES = 3
COMMON = {
    "backbone": {"depth": 18, "width": 8, "norm": "gn"},
    "channels": 16,
    "max_level": 5,
    "head_std": 0.05,
}
SETTINGS = {
    "retinanet": {
        **COMMON,
        "detector": "retinanet",
        "head_convs": 1,
        "anchors": {"scale": 2.0, "octaves": 2},
        "test": {"score": 0.0, "pre_nms": 40, "max_out": 10},
    },
    "faster_rcnn": {
        **COMMON,
        "detector": "faster_rcnn",
        "fc": 16,
        "anchors": {"scale": 4.0},
        "proposals": {"pre_nms": 60, "max_out": 30, "pre_nms_test": 60, "max_out_test": 30},
        "sampler": {"rpn": 32, "roi": 16},
        "test": {"score": 0.0, "pre_nms": 60, "max_out": 10},
    },
}
DETECTORS = tuple(SETTINGS)
# Compiler options for programs that run once, where compiling takes most of the time.
QUICK = {"xla_backend_optimization_level": 0}


def build(name, dtype=jnp.float32, **changes):
    """A narrow detector with active residual branches."""
    detector = models.init_detector({**SETTINGS[name], **changes}, NUM_CLASSES, 0, dtype)
    for stage in detector.backbone.stages:
        for block in stage:
            block.norms[-1].scale[...] = jnp.full_like(block.norms[-1].scale[...], 0.5)
    return detector


def batch(count=2, filling=0, rows=4):
    """Images, targets and keys; the last ``filling`` images only fill up the batch."""
    rng = np.random.default_rng(3)
    H, W = CANVAS
    images = rng.normal(size=(count, H, W, 3)).astype(np.float32)
    # Of a hundred seeds, the one whose overlaps with all anchors used here differ most from the
    # thresholds and each other, by 7e-4. Boxes inside several anchors are never clear.
    boxes_rng = np.random.default_rng(98)
    low = boxes_rng.uniform(0, 30, (count, 3, 2))
    boxes = np.concatenate([low, low + boxes_rng.uniform(12, 30, (count, 3, 2))], axis=-1)
    labels = rng.integers(0, NUM_CLASSES, (count, 3))
    total = count + filling
    out = Targets(
        sizes=np.zeros((total, 2), np.int32),
        boxes=np.zeros((total, rows, 4), np.float32),
        labels=np.zeros((total, rows), np.int32),
        valid=np.zeros((total, rows), bool),
        image_valid=np.arange(total) < count,
    )
    out.sizes[:count] = [[64, 96], [60, 70]][:count]
    out.boxes[:count, :3] = boxes
    out.labels[:count, :3] = labels
    out.valid[:count, :3] = True
    padded = np.zeros((total, H, W, 3), np.float32)
    padded[:count] = images
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(5), jnp.arange(total))
    return padded, out, keys


def losses(graph, state, images, targets, keys):
    """All losses of a batch from a detector split into graph and state."""
    detector = nnx.merge(graph, state, copy=True)
    return detector.losses(detector.features(images, targets.image_valid), targets, keys)


def jitted(graph):
    """A compiled function for (losses, gradients) of a batch."""

    def total(state, images, targets, keys):
        terms = losses(graph, state, images, targets, keys)
        return sum(terms.values()), terms

    compiled = jax.jit(jax.value_and_grad(total, has_aux=True))

    def run(state, images, targets, keys):
        (_, terms), gradients = compiled(state, images, targets, keys)
        return {name: float(value) for name, value in terms.items()}, gradients

    return run
