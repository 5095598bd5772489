"""Max pooling.

Letters: B images, h w C a map, p q the cells of the result.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from drkd_jax.ops.platform import platform

Padding = tuple[tuple[int, int], tuple[int, int]]


def max_pool(
    x: Float[jax.Array, "B h w C"],
    size: int,
    stride: int,
    padding: Padding,
) -> Float[jax.Array, "B p q C"]:
    """The maximum over windows; cells outside the map are ignored.

    Args:
        x: the map.
        size: cells of a window along both axes.
        stride: cells from window to window.
        padding: cells (before, after) along y and x.

    Returns:
        ``[B, p, q, C]`` in the map's dtype.
    """
    if platform() == "cpu":
        return _max_pool(x, size, stride, padding)
    if platform() != "onnx":
        return _by_xla(x, size, stride, padding)
    # jax2onnx turns XLA's window into a pooling over four axes, which no ONNX runtime supports.
    return reduce(jnp.maximum, (seen for _, _, seen in _seen(x, size, stride, padding)))


def _by_xla(x: jax.Array, size: int, stride: int, padding: Padding) -> jax.Array:
    return nnx.max_pool(x, (size, size), strides=(stride, stride), padding=padding)


# On a CPU XLA's own gradient takes 15 times as long as the pooling itself.
_max_pool = jax.custom_vjp(_by_xla, nondiff_argnums=(1, 2, 3))


def _forward(
    x: jax.Array, size: int, stride: int, padding: Padding
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    largest = _by_xla(x, size, stride, padding)
    return largest, (x, largest)


def _backward(
    size: int,
    stride: int,
    padding: Padding,
    saved: tuple[jax.Array, jax.Array],
    gradient: Float[jax.Array, "B p q C"],
) -> tuple[jax.Array]:
    """Passes a window's gradient to the first of its cells that has the maximum, as XLA does.

    Cells with equal coordinates modulo the stride are computed together, on maps of the result's
    size, and are interleaved at the end.
    """
    x, largest = saved
    more = (size - 1) // stride
    parts: dict[tuple[int, int], jax.Array] = {}
    taken = jnp.zeros(largest.shape, bool)
    for y, z, seen in _seen(x, size, stride, padding):
        first = (seen == largest) & ~taken
        taken |= first
        shifts = ((n // stride, more - n // stride) for n in (y, z))
        part = jnp.pad(jnp.where(first, gradient, 0), ((0, 0), *shifts, (0, 0)))
        place = (y % stride, z % stride)
        parts[place] = parts[place] + part if place in parts else part
    B, p, q, C = gradient.shape
    p, q = p + more, q + more
    nothing = jnp.zeros((B, p, q, C), gradient.dtype)  # for cells that no window covers
    places = [parts.get((y, z), nothing) for y in range(stride) for z in range(stride)]
    found = jnp.stack(places).reshape(stride, stride, B, p, q, C)
    found = found.transpose(2, 3, 0, 4, 1, 5).reshape(B, p * stride, q * stride, C)
    (top, _), (left, _) = padding
    ends = [
        (0, max(0, n + low - m))
        for n, low, m in zip(x.shape[1:3], (top, left), found.shape[1:3], strict=True)
    ]
    found = jnp.pad(found, ((0, 0), *ends, (0, 0)))
    return (found[:, top : top + x.shape[1], left : left + x.shape[2]],)


_max_pool.defvjp(_forward, _backward)


def _seen(
    x: Float[jax.Array, "B h w C"], size: int, stride: int, padding: Padding
) -> Iterator[tuple[int, int, Float[jax.Array, "B p q C"]]]:
    """The cell (y, z) of every window, row by row."""
    lowest = jnp.finfo(x.dtype).min
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)), constant_values=lowest)
    high, wide = ((side - size) // stride * stride + 1 for side in x.shape[1:3])
    for y in range(size):
        for z in range(size):
            yield y, z, x[:, y : y + high : stride, z : z + wide : stride]
