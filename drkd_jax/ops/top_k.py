"""The k largest of very long rows, in stages.

A GPU sorts a row to find its largest numbers, in dozens of passes over all of it. The best of each
block first, then the best of those, is the same answer.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from drkd_jax.ops.platform import platform
from drkd_jax.types import Array

# Numbers of a block: as many as are sorted without leaving a multiprocessor.
_BLOCK = 4096
_BLOCKS_OF_K = 4  # at least so many times k, so that a stage leaves a quarter or less


def top_k(x: Float[Array, "... N"], k: int) -> tuple[Float[Array, "... k"], Int[Array, "... k"]]:
    """`jax.lax.top_k` over the last axis: the same values and rows, ties by the lower row.

    Args:
        x: ``[..., N]``.
        k: at most N.

    Returns:
        The values, falling, and their places int32.
    """
    length = x.shape[-1]
    block = max(_BLOCK, _BLOCKS_OF_K * 2 ** math.ceil(math.log2(max(k, 1))))  # sorted as 2^n
    if platform() in ("cpu", "onnx") or length <= 2 * block or k == 0:
        best, row = jax.lax.top_k(x, k)
        return best, row
    blocks = -(-length // block)
    # What is added stands behind everything else that is as small, in its block and in the row.
    missing = [(0, 0)] * (x.ndim - 1) + [(0, blocks * block - length)]
    padded = jnp.pad(x, missing, constant_values=-jnp.inf)
    each, inside = jax.lax.top_k(padded.reshape(*x.shape[:-1], blocks, block), k)
    rows = inside + block * jnp.arange(blocks, dtype=inside.dtype)[:, None]
    flat = (*x.shape[:-1], blocks * k)
    best, place = top_k(each.reshape(flat), k)
    return best, jnp.take_along_axis(rows.reshape(flat), place, axis=-1)
