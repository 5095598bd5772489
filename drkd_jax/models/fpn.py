"""Feature pyramid network without norms.

Letters: B images, h w C one feature map.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from drkd_jax.models.initializers import xavier_uniform
from drkd_jax.models.resnet import conv
from drkd_jax.models.settings import PyramidSettings
from drkd_jax.ops.relu import relu
from drkd_jax.types import FeatureSpec

TOP = 5  # the coarsest level with a lateral connection


class FPN(nnx.Module):
    """Lateral 1x1 convolutions, a top-down path, 3x3 convolutions, and the levels above P5.

    Source: open-mmlab/mmdetection mmdet/models/necks/fpn.py.
    """

    def __init__(
        self,
        inputs: tuple[int, ...],
        settings: PyramidSettings,
        *,
        rngs: nnx.Rngs,
        dtype: jnp.dtype,
    ):
        """Build for the given channels of C2..C5; levels from ``min_level`` on are used."""
        C = settings.channels
        self.extra = settings.extra
        self.extra_relu = settings.extra_relu
        self.skipped = settings.min_level - 2
        used = inputs[self.skipped :]
        num_extra = settings.max_level - TOP

        def layer(a: int, size: int, stride: int = 1) -> nnx.Conv:
            return conv(
                a,
                C,
                size,
                stride=stride,
                bias=True,
                kernel_init=xavier_uniform(),
                rngs=rngs,
                dtype=dtype,
            )

        self.laterals = nnx.List(layer(c, 1) for c in used)
        self.outputs = nnx.List(layer(C, 3) for _ in used)
        first = inputs[-1] if settings.extra == "conv_c5" else C
        sources = [first, *[C] * num_extra][:num_extra] if settings.extra != "pool" else []
        self.extras = nnx.List(layer(c, 3, 2) for c in sources)
        self.num_extra = num_extra
        levels = range(settings.min_level, settings.max_level + 1)
        self.spec = FeatureSpec(
            channels=(C,) * len(levels),
            strides=tuple(2**level for level in levels),
            kinds=tuple("lateral" if level <= TOP else settings.extra for level in levels),
        )

    def __call__(
        self, maps: tuple[Float[jax.Array, "B _h _w _C"], ...]
    ) -> tuple[Float[jax.Array, "B _p _q C"], ...]:
        """Compute the pyramid from C2..C5, finest level first."""
        lateral = [layer(c) for layer, c in zip(self.laterals, maps[self.skipped :], strict=True)]
        for i in range(len(lateral) - 1, 0, -1):
            h, w = lateral[i - 1].shape[1:3]
            lateral[i - 1] = lateral[i - 1] + upsample_nearest(lateral[i], (h, w))
        pyramid = [layer(x) for layer, x in zip(self.outputs, lateral, strict=True)]
        if self.extra == "pool":
            for _ in range(self.num_extra):
                pyramid.append(pyramid[-1][:, ::2, ::2])
        x = maps[-1] if self.extra == "conv_c5" else pyramid[-1]
        for i, layer in enumerate(self.extras):
            x = layer(relu(x) if i > 0 and self.extra_relu else x)
            pyramid.append(x)
        return tuple(pyramid)


def upsample_nearest(
    x: Float[jax.Array, "B h w C"], size: tuple[int, int]
) -> Float[jax.Array, "B p q C"]:
    """Enlarge a map to ``size`` (rows, columns); output pixel i is input pixel floor(i h / p)."""
    B, h, w, C = x.shape
    if size == (2 * h, 2 * w):  # the usual case: a broadcast is cheaper than a gather
        wide = jnp.broadcast_to(x[:, :, None, :, None], (B, h, 2, w, 2, C))
        return wide.reshape(B, 2 * h, 2 * w, C)
    rows, columns = (np.arange(n) * m // n for n, m in zip(size, (h, w), strict=True))
    return x[:, rows][:, :, columns]
