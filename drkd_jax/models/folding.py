"""Folds a detector's batch norms into its convolutions.

In evaluation a batch norm is one factor and one shift per channel, which the convolution before it
can absorb; the map is then written once instead of twice. The result is for inference only: a
frozen teacher, or a detector to be evaluated.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx

from drkd_jax.models.detector import Detector
from drkd_jax.models.feature_extractor import FeatureExtractor
from drkd_jax.models.norm import BatchNorm, FrozenBatchNorm
from drkd_jax.models.resnet import ResNet

T = TypeVar("T", bound=FeatureExtractor)


def fold(detector: T) -> T:
    """Fold every batch norm, with its running statistics, into the convolution before it.

    Args:
        detector: a detector or feature extractor with values; it is not changed. Group norms
            depend on the image and cannot be folded: with them, or if there is nothing left to
            fold, the detector itself is returned.

    Returns:
        A module of the same class with ``backbone.norm`` "folded". Heads and neck are shared with
        ``detector``; the backbone's float32 kernels are new. Its features equal those of
        ``detector`` in evaluation, up to float32 rounding.
    """
    settings = detector.settings
    old = settings.backbone
    if old.norm not in ("frozen_bn", "bn"):
        return detector
    # Frozen stages stay frozen: nothing of this module is trained, but gradients stop there.
    backbone = dataclasses.replace(old, norm="folded", norm_batch=0, frozen_stages=old.num_frozen)
    settings = dataclasses.replace(settings, backbone=backbone)
    folded = nnx.eval_shape(lambda: _bare(detector, settings))
    for name, value in vars(detector).items():
        if isinstance(value, nnx.Module) and name != "backbone":
            setattr(folded, name, value)
    _fold_backbone(detector.backbone, folded.backbone)
    return folded


def _bare(detector: T, settings: Any) -> T:
    """A detector of the same class with other settings."""
    known: dict[str, Any] = {"rngs": nnx.Rngs(0), "dtype": detector.dtype}
    if isinstance(detector, Detector):
        return type(detector)(settings, detector.num_classes, **known)
    return type(detector)(settings, **known)


def _fold_backbone(old: ResNet, new: ResNet) -> None:
    _fold_pair(old.stem.conv, old.stem.norm, new.stem.conv)
    for old_stage, new_stage in zip(old.stages, new.stages, strict=True):
        for a, b in zip(old_stage, new_stage, strict=True):
            for conv, norm, into in zip(a.convs, a.norms, b.convs, strict=True):
                _fold_pair(conv, norm, into)
            if a.shortcut is not None:
                _fold_pair(a.shortcut, a.shortcut_norm, b.shortcut)


def _fold_pair(conv: Any, norm: Any, into: Any) -> None:
    """Write the convolution and its norm into one convolution with a bias."""
    if not isinstance(norm, (FrozenBatchNorm, BatchNorm)):
        raise TypeError(f"a norm of class {type(norm).__name__} cannot be folded")
    # On the host in float64: rounds to float32 only once, and compiles nothing.
    kernel, scale, bias, mean, var = (
        np.asarray(v[...], np.float64)
        for v in (conv.kernel, norm.scale, norm.bias, norm.mean, norm.var)
    )
    factor = scale / np.sqrt(var + norm.eps)
    into.kernel = nnx.Param(jnp.asarray((kernel * factor).astype(np.float32)))
    into.bias = nnx.Param(jnp.asarray((bias - mean * factor).astype(np.float32)))
    if hasattr(conv, "offset"):
        into.offset = conv.offset
