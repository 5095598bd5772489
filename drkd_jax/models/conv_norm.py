"""Merges a convolution and the norm after it into one convolution, if the norm is constant.

Letters: B images, h w C one feature map.

With constant statistics a norm is a factor and a shift per channel: the factor can be multiplied
into the kernel, the shift becomes a bias. The map is then written once instead of twice, and need
not be kept for the gradient of the norm's scale, which follows from the kernel's. On a CPU, where
images are small, the extra pass over all kernels costs more than this saves, so there the norm
stays separate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import jax
from flax import nnx
from jaxtyping import Bool, Float

from drkd_jax.models.norm import FrozenBatchNorm, Norm
from drkd_jax.ops.conv import convolve
from drkd_jax.ops.platform import platform


def conv_norm(
    layer: Callable[[jax.Array], jax.Array],
    norm: Norm,
    x: Float[jax.Array, "B h w C"],
    image_valid: Bool[jax.Array, "B"] | None,
) -> Float[jax.Array, "B p q D"]:
    """``norm(layer(x), image_valid)``, merged where possible.

    Kernel and factor are multiplied in float32 and rounded once to the layer's dtype; the shift is
    added in that dtype.

    Args:
        layer: a convolution; it has no bias if the norm is a `FrozenBatchNorm`.
        norm: the norm of its output.
        x: the input.
        image_valid: see `ResNet.__call__`.
    """
    if (
        platform() == "cpu"
        or not isinstance(norm, FrozenBatchNorm)
        or not isinstance(layer, nnx.Conv)
    ):
        return norm(layer(x), image_valid)
    factor, shift = norm.affine()
    out = convolve(
        x.astype(layer.dtype),
        (layer.kernel[...] * factor).astype(layer.dtype),
        (cast(int, layer.strides),) * 2,
        layer.padding,
        feature_group_count=layer.feature_group_count,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return out + shift.astype(out.dtype)
