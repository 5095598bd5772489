"""The k largest of very long rows, in stages.

A GPU sorts a row to find its largest numbers, in dozens of passes over the whole row. Taking the
best of each block first, and then the best of those, gives the same result.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from drkd_jax.ops.platform import platform
from drkd_jax.types import Array

# Block size: as many numbers as can be sorted within one multiprocessor.
_BLOCK = 4096
_BLOCKS_OF_K = 4  # a block has at least this many times k, so that a stage leaves at most a quarter


def top_k(x: Float[Array, "... N"], k: int) -> tuple[Float[Array, "... k"], Int[Array, "... k"]]:
    """`jax.lax.top_k` over the last axis: the same values and rows, ties by the lower row.

    Args:
        x: ``[..., N]``.
        k: at most N.

    Returns:
        The values in descending order, and their positions, int32.
    """
    length = x.shape[-1]
    block = max(_BLOCK, _BLOCKS_OF_K * 2 ** math.ceil(math.log2(max(k, 1))))  # sorted as 2^n
    if platform() in ("cpu", "onnx") or length <= 2 * block or k == 0:
        best, row = jax.lax.top_k(x, k)
        return best, row
    blocks = -(-length // block)
    # Padding is appended at the end, so it comes after all equally small values.
    missing = [(0, 0)] * (x.ndim - 1) + [(0, blocks * block - length)]
    padded = jnp.pad(x, missing, constant_values=-jnp.inf)
    each, inside = jax.lax.top_k(padded.reshape(*x.shape[:-1], blocks, block), k)
    rows = inside + block * jnp.arange(blocks, dtype=inside.dtype)[:, None]
    flat = (*x.shape[:-1], blocks * k)
    best, place = top_k(each.reshape(flat), k)
    return best, jnp.take_along_axis(rows.reshape(flat), place, axis=-1)
