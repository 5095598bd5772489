"""The largest of a window.

Letters: B pictures, h w C a map, p q the cells of the result.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from drkd_jax.ops.platform import platform


def max_pool(
    x: Float[jax.Array, "B h w C"],
    size: int,
    stride: int,
    padding: tuple[tuple[int, int], tuple[int, int]],
) -> Float[jax.Array, "B p q C"]:
    """The maximum over windows; what lies outside of the map counts nowhere.

    Args:
        x: the map.
        size: cells of a window along both axes.
        stride: cells from window to window.
        padding: cells (before, after) along y and x.

    Returns:
        ``[B, p, q, C]`` in the map's dtype.
    """
    if platform() != "onnx":
        return nnx.max_pool(x, (size, size), strides=(stride, stride), padding=padding)
    # jax2onnx makes a pooling over four axes of XLA's window, which no ONNX runtime runs.
    lowest = jnp.finfo(x.dtype).min
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)), constant_values=lowest)
    rows, columns = ((side - size) // stride * stride + 1 for side in x.shape[1:3])
    shifted = (
        jax.lax.slice(
            x,
            (0, y, z, 0),
            (x.shape[0], y + rows, z + columns, x.shape[3]),
            (1, stride, stride, 1),
        )
        for y in range(size)
        for z in range(size)
    )
    result = next(shifted)
    for other in shifted:
        result = jnp.maximum(result, other)
    return result
