"""Normalisation layers, all called as ``norm(x, picture_valid)``.

Letters: B pictures, h w C one feature map.

Sums run in float32 whatever the compute dtype; the result has the input's dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float

from drkd_jax.models.initializers import filled

EPSILON = 1e-5


class Statistic(nnx.Variable):
    """A mean or variance that came with pretrained weights and never changes."""


class FrozenBatchNorm(nnx.Module):
    """Batch normalisation with constant statistics; scale and bias are trained.

    Source: open-mmlab/mmdetection, ``norm_eval=True`` with ``requires_grad=True``.
    """

    def __init__(self, channels: int, *, zero_scale: bool = False):
        self.scale = nnx.Param(filled(channels, 0.0 if zero_scale else 1.0))
        self.bias = nnx.Param(filled(channels, 0.0))
        self.mean = Statistic(filled(channels, 0.0))
        self.var = Statistic(filled(channels, 1.0))

    def __call__(
        self, x: Float[jax.Array, "B h w C"], picture_valid: Bool[jax.Array, "B"] | None
    ) -> Float[jax.Array, "B h w C"]:
        """Normalise; ``picture_valid`` changes nothing here."""
        factor = self.scale[...] * jax.lax.rsqrt(self.var[...] + EPSILON)
        return _affine(x, factor, self.bias[...] - self.mean[...] * factor)


class BatchNorm(nnx.Module):
    """Batch normalisation over the valid pictures of the global batch.

    With ``picture_valid`` given (training) the batch's own statistics are used and the running
    ones are updated; with None (evaluation) the running ones are used. Under ``jit`` over a
    sharded batch the sums are global, so the device count changes nothing.
    """

    def __init__(self, channels: int, *, zero_scale: bool = False, momentum: float = 0.9):
        self.scale = nnx.Param(filled(channels, 0.0 if zero_scale else 1.0))
        self.bias = nnx.Param(filled(channels, 0.0))
        self.mean = nnx.BatchStat(filled(channels, 0.0))
        self.var = nnx.BatchStat(filled(channels, 1.0))
        self.momentum = momentum

    def __call__(
        self, x: Float[jax.Array, "B h w C"], picture_valid: Bool[jax.Array, "B"] | None
    ) -> Float[jax.Array, "B h w C"]:
        """Normalise by the batch (``picture_valid`` given) or by the running statistics."""
        mean, var = self.mean[...], self.var[...]
        if picture_valid is not None:
            wide = x.astype(jnp.float32)
            weight = picture_valid.astype(jnp.float32)[:, None, None, None]
            count = jnp.maximum(weight.sum() * (x.shape[1] * x.shape[2]), 1.0)
            mean = jnp.sum(wide * weight, axis=(0, 1, 2)) / count
            var = jnp.sum(jnp.square(wide - mean) * weight, axis=(0, 1, 2)) / count
            keep = self.momentum
            unbiased = var * count / jnp.maximum(count - 1, 1)
            self.mean[...] = keep * self.mean[...] + (1 - keep) * jax.lax.stop_gradient(mean)
            self.var[...] = keep * self.var[...] + (1 - keep) * jax.lax.stop_gradient(unbiased)
        factor = self.scale[...] * jax.lax.rsqrt(var + EPSILON)
        return _affine(x, factor, self.bias[...] - mean * factor)


class GroupNorm(nnx.Module):
    """Group normalisation: every picture by itself, so neither batch nor devices matter."""

    def __init__(self, channels: int, *, zero_scale: bool = False):
        self.scale = nnx.Param(filled(channels, 0.0 if zero_scale else 1.0))
        self.bias = nnx.Param(filled(channels, 0.0))
        self.groups = group_count(channels)

    def __call__(
        self, x: Float[jax.Array, "B h w C"], picture_valid: Bool[jax.Array, "B"] | None
    ) -> Float[jax.Array, "B h w C"]:
        """Normalise; ``picture_valid`` changes nothing here."""
        B, h, w, C = x.shape
        wide = x.astype(jnp.float32).reshape(B, h * w, self.groups, C // self.groups)
        mean = wide.mean(axis=(1, 3), keepdims=True)
        var = jnp.square(wide - mean).mean(axis=(1, 3), keepdims=True)
        inverse = jax.lax.rsqrt(var + EPSILON)
        scale = self.scale[...].reshape(1, 1, self.groups, -1)
        factor = (inverse * scale).reshape(B, 1, 1, C)
        shift = (-mean * inverse * scale).reshape(B, 1, 1, C) + self.bias[...]
        return _affine(x, factor, shift)


def group_count(channels: int) -> int:
    """Groups for a map of so many channels: 32 as usual, fewer where it has under 64 channels.

    A group keeps at least 4 channels there, since one channel a group would erase the mean
    brightness of every channel.
    """
    groups = 32 if channels >= 64 else max(channels // 4, 1)
    while channels % groups:
        groups -= 1
    return groups


def _affine(
    x: Float[jax.Array, "B h w C"], factor: Float[jax.Array, "..."], shift: Float[jax.Array, "..."]
) -> Float[jax.Array, "B h w C"]:
    return (x.astype(jnp.float32) * factor + shift).astype(x.dtype)


Norm = FrozenBatchNorm | BatchNorm | GroupNorm
NORM_CLASSES: Mapping[str, type[FrozenBatchNorm] | type[BatchNorm] | type[GroupNorm]] = (
    MappingProxyType({"frozen_bn": FrozenBatchNorm, "bn": BatchNorm, "gn": GroupNorm})
)
