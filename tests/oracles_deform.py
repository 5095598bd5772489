"""Deformable convolution by loops, in float64."""

from __future__ import annotations

import itertools
import math

import numpy as np


def read(image, y, x):
    """One bilinear sample of ``[h, w, C]``, with zeros around."""
    h, w, C = image.shape
    total = np.zeros(C)
    if not (-1 < y < h and -1 < x < w):
        return total
    for row, column in itertools.product((0, 1), (0, 1)):
        i, j = math.floor(y) + row, math.floor(x) + column
        if 0 <= i < h and 0 <= j < w:
            total += (1 - abs(y - i)) * (1 - abs(x - j)) * image[i, j]
    return total


def deform_conv(x, kernel, offsets, modulation=None, *, stride=1, padding=1, dilation=1):
    """Like `drkd_jax.ops.deform_conv.deform_conv`."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    B, C = x.shape[0], x.shape[3]
    k, l, D, O = kernel.shape  # noqa: E741
    groups, (_, p, q, _) = C // D, offsets.shape
    out = np.zeros((B, p, q, O))
    for b, i, j, a, c in itertools.product(range(B), range(p), range(q), range(k), range(l)):
        tap = a * l + c
        y = i * stride - padding + a * dilation + offsets[b, i, j, 2 * tap]
        z = j * stride - padding + c * dilation + offsets[b, i, j, 2 * tap + 1]
        value = read(x[b], y, z)
        if modulation is not None:
            value = value * modulation[b, i, j, tap]
        for g in range(groups):
            own = slice(g * O // groups, (g + 1) * O // groups)
            out[b, i, j, own] += value[g * D : (g + 1) * D] @ kernel[a, c, :, own]
    return out
