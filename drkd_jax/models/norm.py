"""Normalisation layers, all called as ``norm(x, image_valid)``.

Letters: B images, h w C one feature map.

Sums run in float32 at least, whatever the compute dtype; the result has the input's dtype.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float

from drkd_jax.errors import UserError
from drkd_jax.frozen import Frozen
from drkd_jax.models.backbone_settings import BackboneSettings
from drkd_jax.models.initializers import filled
from drkd_jax.ops.group_norm import group_norm

EPSILON = 1e-5
KEEP = 0.9  # share of the running statistics that a step keeps


class FrozenBatchNorm(nnx.Module):
    """Batch normalisation with constant statistics; scale and bias are trained.

    Source: open-mmlab/mmdetection, ``norm_eval=True`` with ``requires_grad=True``.
    """

    def __init__(self, channels: int, *, zero_scale: bool = False, eps: float = EPSILON):
        self.eps = eps
        self.scale = nnx.Param(filled(channels, 0.0 if zero_scale else 1.0))
        self.bias = nnx.Param(filled(channels, 0.0))
        self.mean = Frozen(filled(channels, 0.0))
        self.var = Frozen(filled(channels, 1.0))

    def __call__(
        self, x: Float[jax.Array, "B h w C"], image_valid: Bool[jax.Array, "B"] | None
    ) -> Float[jax.Array, "B h w C"]:
        """Normalise; ``image_valid`` changes nothing here."""
        return _affine(x, *self.affine())

    def affine(self) -> tuple[Float[jax.Array, "C"], Float[jax.Array, "C"]]:
        """The factor and the shift of each channel."""
        factor = self.scale[...] * jax.lax.rsqrt(self.var[...] + self.eps)
        return factor, self.bias[...] - self.mean[...] * factor


class BatchNorm(nnx.Module):
    """Batch normalisation over the valid images of the global batch, or of fixed groups.

    With ``image_valid`` given (training) the batch's own statistics are used and the running
    ones are updated; with None (evaluation) the running ones are used. Under ``jit`` over a
    sharded batch the sums are global, so the result does not depend on the device count. With
    ``group`` n, images 0..n-1 of the global batch share statistics, then n..2n-1, and so on: as
    if every n images were on a separate device, whatever the number of devices. The running
    statistics are then updated with the mean over the groups that hold a valid image.
    """

    def __init__(
        self,
        channels: int,
        *,
        zero_scale: bool = False,
        eps: float = EPSILON,
        group: int = 0,
    ):
        self.eps = eps
        self.group = group
        self.scale = nnx.Param(filled(channels, 0.0 if zero_scale else 1.0))
        self.bias = nnx.Param(filled(channels, 0.0))
        self.mean = nnx.BatchStat(filled(channels, 0.0))
        self.var = nnx.BatchStat(filled(channels, 1.0))

    def __call__(
        self, x: Float[jax.Array, "B h w C"], image_valid: Bool[jax.Array, "B"] | None
    ) -> Float[jax.Array, "B h w C"]:
        """Normalise by the batch (``image_valid`` given) or by the running statistics.

        Raises:
            UserError: the batch is not a multiple of the group size.
        """
        if image_valid is None:
            factor = self.scale[...] * jax.lax.rsqrt(self.var[...] + self.eps)
            return _affine(x, factor, self.bias[...] - self.mean[...] * factor)
        B, h, w, C = x.shape
        size = self.group or B
        if B % size:
            raise UserError(
                f"backbone.norm_batch is {size}, which does not divide the batch of {B} images"
            )
        wide = _widened(x).reshape(B // size, size, h, w, C)
        weight = image_valid.astype(wide.dtype).reshape(B // size, size, 1, 1, 1)
        pixels = weight.sum(axis=(1, 2, 3, 4), keepdims=True) * (h * w)
        count = jnp.maximum(pixels, 1.0)
        mean = jnp.sum(wide * weight, axis=(1, 2, 3), keepdims=True) / count
        var = jnp.sum(jnp.square(wide - mean) * weight, axis=(1, 2, 3), keepdims=True) / count
        self._remember(mean, var * count / jnp.maximum(count - 1, 1), pixels > 0)
        factor = self.scale[...] * jax.lax.rsqrt(var + self.eps)
        out = wide * factor + (self.bias[...] - mean * factor)
        return out.reshape(x.shape).astype(x.dtype)

    def _remember(self, mean: jax.Array, var: jax.Array, used: jax.Array) -> None:
        """Move the running statistics towards the mean over the groups in use."""
        num_used = jnp.maximum(used.sum(), 1)
        for running, now in ((self.mean, mean), (self.var, var)):
            seen = jnp.where(used, now, 0.0).sum(axis=(0, 1, 2, 3)) / num_used
            running[...] = KEEP * running[...] + (1 - KEEP) * jax.lax.stop_gradient(seen)


class GroupNorm(nnx.Module):
    """Group normalisation: each image separately, independent of batch and devices."""

    def __init__(self, channels: int, *, zero_scale: bool = False):
        self.scale = nnx.Param(filled(channels, 0.0 if zero_scale else 1.0))
        self.bias = nnx.Param(filled(channels, 0.0))
        self.groups = group_count(channels)

    def __call__(
        self, x: Float[jax.Array, "B h w C"], image_valid: Bool[jax.Array, "B"] | None
    ) -> Float[jax.Array, "B h w C"]:
        """Normalise; ``image_valid`` changes nothing here."""
        return group_norm(x, self.scale[...], self.bias[...], self.groups, EPSILON)


def group_count(channels: int) -> int:
    """The number of groups for a map: 32 as usual, fewer for maps under 64 channels.

    There a group keeps at least 4 channels, since with one channel per group the mean of every
    channel would be lost.
    """
    groups = 32 if channels >= 64 else max(channels // 4, 1)
    while channels % groups:
        groups -= 1
    return groups


def _affine(
    x: Float[jax.Array, "B h w C"], factor: Float[jax.Array, "..."], shift: Float[jax.Array, "..."]
) -> Float[jax.Array, "B h w C"]:
    return (_widened(x) * factor + shift).astype(x.dtype)


def _widened(x: Float[jax.Array, "..."]) -> Float[jax.Array, "..."]:
    return x.astype(jnp.promote_types(jnp.float32, x.dtype))


class NoNorm(nnx.Module):
    """The identity: the norm is folded into the convolution before it (`models.folding`)."""

    def __call__(
        self, x: Float[jax.Array, "B h w C"], image_valid: Bool[jax.Array, "B"] | None
    ) -> Float[jax.Array, "B h w C"]:
        """The input."""
        return x


Norm = FrozenBatchNorm | BatchNorm | GroupNorm | NoNorm


def make_norm(settings: BackboneSettings, channels: int, *, zero_scale: bool = False) -> Norm:
    """The norm that the settings name, for a map with this number of channels."""
    if settings.norm == "frozen_bn":
        return FrozenBatchNorm(channels, zero_scale=zero_scale, eps=settings.eps)
    if settings.norm == "bn":
        return BatchNorm(
            channels, zero_scale=zero_scale, eps=settings.eps, group=settings.norm_batch
        )
    if settings.norm == "gn":
        return GroupNorm(channels, zero_scale=zero_scale)
    return NoNorm()
