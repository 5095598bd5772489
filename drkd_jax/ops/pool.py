"""The stem's max pool: 3x3 windows of stride 2, padded by one pixel.

Letters: B pictures, h w C input, p q output.

XLA's CPU backend turns the gradient of a max pool into a search through arrays of indices; there it
is written out in slices: which of the nine taps won is kept in a byte, and each of the four
parities of the input's rows and columns collects the gradient of the taps that can reach it.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from drkd_jax.ops.platform import platform


def max_pool(x: Float[jax.Array, "B h w C"]) -> Float[jax.Array, "B p q C"]:
    """The largest value of each window. Of equal ones the first, line by line, gets the gradient.

    Args:
        x: any float dtype, without NaN.

    Returns:
        ``[B, ceil(h / 2), ceil(w / 2), C]``.
    """
    if platform() == "cpu":
        return _by_slices(x)
    return nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


def _taps(x: jax.Array) -> list[jax.Array]:
    """Every window's nine values, line by line, each ``[B, p, q, C]``."""
    p, q = (-(-n // 2) for n in x.shape[1:3])
    ends = [(1, 2 * n - m) for n, m in zip((p, q), x.shape[1:3], strict=True)]
    x = jnp.pad(x, ((0, 0), *ends, (0, 0)), constant_values=-jnp.inf)
    return [x[:, i : i + 2 * p - 1 : 2, j : j + 2 * q - 1 : 2] for i in range(3) for j in range(3)]


@jax.custom_vjp
def _by_slices(x: jax.Array) -> jax.Array:
    first, *others = _taps(x)
    for tap in others:
        first = jnp.maximum(first, tap)
    return first


def _forward(x: jax.Array) -> tuple[jax.Array, Any]:
    best, *others = _taps(x)
    winner = jnp.zeros(best.shape, jnp.uint8)
    for number, tap in enumerate(others, start=1):
        winner = jnp.where(tap > best, jnp.uint8(number), winner)
        best = jnp.maximum(best, tap)
    empty = jnp.zeros((*x.shape[1:3], 0), x.dtype)  # carries the shape and the dtype only
    return best, (winner, empty)


def _backward(saved: Any, gradient: jax.Array) -> tuple[jax.Array]:
    winner, empty = saved
    h, w = empty.shape[:2]
    B, p, q, C = gradient.shape

    def of(row: int, column: int) -> jax.Array:
        """What a tap passes on, at the window whose row and column it lies in."""
        given = jnp.where(winner == 3 * row + column, gradient, 0)
        # A window's first line and column are the last ones of the window before.
        down, right = row == 0, column == 0
        return jnp.pad(given[:, down:, right:], ((0, 0), (0, down), (0, right), (0, 0)))

    even_rows = of(1, 1), of(1, 2) + of(1, 0)
    odd_rows = of(2, 1) + of(0, 1), of(2, 2) + of(2, 0) + of(0, 2) + of(0, 0)
    # Put together apart from the sums, or each pixel would compute its neighbours' once more.
    even_rows, odd_rows = jax.lax.optimization_barrier((even_rows, odd_rows))
    lines = [jnp.stack(pair, axis=3) for pair in (even_rows, odd_rows)]
    found = jnp.stack(lines, axis=2).reshape(B, 2 * p, 2 * q, C)
    return (found[:, :h, :w].astype(empty.dtype),)


_by_slices.defvjp(_forward, _backward)
