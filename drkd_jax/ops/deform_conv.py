"""Deformable convolution: every tap of the kernel reads at its own learned position.

Letters: B images, h w C the map, p q O the result, k l taps of the kernel, K = k l.

All taps of an image are read by four gathers, one per corner of the bilinear interpolation, and
then multiplied with the kernel by one matrix product per group of channels.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from drkd_jax.types import Array


@jax.custom_vjp
def _take(flat: Array, at: Array) -> Array:
    """Rows ``[B, N, C]`` of ``[B, P, C]`` by ``[B, N]``."""
    return jax.vmap(lambda rows, i: rows.at[i].get(mode="promise_in_bounds"))(flat, at)


def _take_forward(flat: Array, at: Array) -> tuple[Array, Any]:
    empty = jnp.zeros((flat.shape[1], 0), flat.dtype)  # carries the shape and the dtype only
    return _take(flat, at), (empty, at)


def _take_backward(saved: Any, gradient: Array) -> tuple[Array, None]:
    # Many rows may be added to one pixel, so in float32 whatever the map's dtype.
    empty, at = saved
    wide = jnp.zeros((at.shape[0], empty.shape[0], gradient.shape[-1]), jnp.float32)
    wide = jax.vmap(lambda w, i, g: w.at[i].add(g, mode="promise_in_bounds"))(
        wide, at, gradient.astype(jnp.float32)
    )
    return wide.astype(empty.dtype), None


_take.defvjp(_take_forward, _take_backward)


def _places(
    offsets: Array, taps: tuple[int, int], stride: int, padding: int, dilation: int
) -> tuple[Array, Array]:
    """The rows and columns that the taps read, ``[B, p, q, K]`` float32 pixels of the map."""
    B, p, q = offsets.shape[:3]
    k, l = taps  # noqa: E741
    by_tap = jnp.asarray(offsets, jnp.float32).reshape(B, p, q, k * l, 2)
    rows = np.arange(p)[:, None, None] * stride - padding
    columns = np.arange(q)[None, :, None] * stride - padding
    rows = rows + np.repeat(np.arange(k), l) * dilation
    columns = columns + np.tile(np.arange(l), k) * dilation
    return by_tap[..., 0] + rows.astype(np.float32), by_tap[..., 1] + columns.astype(np.float32)


def _axis(at: Array, size: int) -> list[tuple[Array, Array]]:
    """The lower and upper pixel of each position along one axis, each with its weight."""
    lower = jnp.floor(at)
    share = at - lower
    low = lower.astype(jnp.int32)
    return [
        (jnp.clip(low, 0, size - 1), jnp.where(low >= 0, 1.0 - share, 0.0)),
        (jnp.clip(low + 1, 0, size - 1), jnp.where(low + 1 < size, share, 0.0)),
    ]


@partial(jax.named_call, name="deform_conv")
def deform_conv(
    x: Float[Array, "B h w C"],
    kernel: Float[Array, "k l D O"],
    offsets: Float[Array, "B p q K2"],
    modulation: Float[Array, "B p q K"] | None = None,
    *,
    stride: int = 1,
    padding: int = 1,
    dilation: int = 1,
) -> Float[Array, "B p q O"]:
    """A convolution whose taps are shifted by ``offsets`` (version 1) and weighted (version 2).

    All channels are read at the same positions (one deformable group). Reading is bilinear; pixels
    outside the map are 0. A position a whole pixel or more outside gives 0 and no gradient.

    Args:
        x: ``[B, h, w, C]`` features.
        kernel: ``[k, l, C / groups, O]``; the number of groups follows from the shapes.
        offsets: ``[B, p, q, 2 k l]`` pixels of the map; y and x of each tap, taps by row, then
            column. ``[p, q]`` are the sizes of the plain convolution's result.
        modulation: ``[B, p, q, k l]`` factor of each tap; None for version 1.
        stride: of the convolution, both axes.
        padding: rows and columns of zeros on every side.
        dilation: pixels between unshifted taps.

    Returns:
        ``[B, p, q, O]`` of ``x``'s dtype. Positions and bilinear weights are float32.

    Raises:
        ValueError: the shapes do not fit each other.

    Source: Dai et al. 2017, "Deformable Convolutional Networks"; Zhu et al. 2019, "Deformable
        ConvNets v2"; the order of the offsets and the border as in open-mmlab/mmcv
        ``mmcv/ops/csrc/common/cuda/deform_conv_cuda_kernel.cuh``.
    """
    x, kernel = jnp.asarray(x), jnp.asarray(kernel)
    B, h, w, C = x.shape
    k, l, D, O = kernel.shape  # noqa: E741
    p, q = ((n + 2 * padding - dilation * (m - 1) - 1) // stride + 1 for n, m in ((h, k), (w, l)))
    groups, rest = divmod(C, D)
    if rest or O % groups:
        raise ValueError(f"a kernel of shape {kernel.shape} does not divide {C} channels")
    if offsets.shape != (B, p, q, 2 * k * l):
        raise ValueError(f"offsets of shape {offsets.shape}, not {(B, p, q, 2 * k * l)}")
    if modulation is not None and modulation.shape != (B, p, q, k * l):
        raise ValueError(f"modulation of shape {modulation.shape}, not {(B, p, q, k * l)}")

    y, z = _places(offsets, (k, l), stride, padding, dilation)
    inside = (y > -1) & (y < h) & (z > -1) & (z < w)
    y, z = jnp.where(inside, y, 0.0), jnp.where(inside, z, 0.0)  # no gradient outside, no NaN
    share = inside.astype(jnp.float32)
    if modulation is not None:
        share = share * jnp.asarray(modulation, jnp.float32)

    flat = x.reshape(B, h * w, C)
    taps = jnp.zeros((B, p * q * k * l, C), jnp.float32)
    for row, row_weight in _axis(y, h):
        for column, column_weight in _axis(z, w):
            at = (row * w + column).reshape(B, -1)
            weight = (row_weight * column_weight * share).reshape(B, -1, 1)
            taps += weight * _take(flat, at).astype(jnp.float32)
    taps = taps.astype(x.dtype)
    kernel = kernel.astype(x.dtype)
    if groups == 1:
        out = taps.reshape(B, p * q, k * l * C) @ kernel.reshape(k * l * C, O)
    else:
        out = jnp.einsum(
            "bnkgd,kdgo->bngo",
            taps.reshape(B, p * q, k * l, groups, D),
            kernel.reshape(k * l, D, groups, O // groups),
        )
    return out.reshape(B, p, q, O)
