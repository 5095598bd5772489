"""Samples a fixed number of anchors or regions to compute a loss on.

Letters: A anchors or regions of one image, M sampled rows. Use ``jax.vmap`` for a batch, with one
key per image.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Int, PRNGKeyArray

from drkd_jax.ops.top_k import top_k
from drkd_jax.types import Array


class Sampled(NamedTuple):
    """Sampled rows: positives, then negatives, then rows that are not ``valid``."""

    indices: Int[Array, "M"]  # rows of the input, each at most once; 0 where not valid
    positive: Bool[Array, "M"]
    valid: Bool[Array, "M"]


def sample(
    key: PRNGKeyArray,
    positive: Bool[Array, "A"],
    negative: Bool[Array, "A"],
    num: int,
    max_positive: int,
) -> Sampled:
    """Draws rows without replacement: up to ``max_positive`` positives, the rest negatives.

    Missing positives are replaced by negatives; if these run out too, the remaining rows are not
    ``valid``. Row i's random number depends only on the key and on i, so appending padding rows
    that are neither positive nor negative changes nothing.

    Args:
        key: One PRNG key.
        positive: ``[A]``.
        negative: ``[A]``; a row that is both counts as positive.
        num: Rows to draw; may be more than A.
        max_positive: The most positives among them.

    Returns:
        ``indices`` int32, ``positive``, ``valid``: ``[num]`` each.

    Source: mmdetection ``models/task_modules/samplers/random_sampler.py`` without a limit on the
        negatives.
    """
    total = positive.shape[0]
    noise = jax.random.uniform(key, (total,))
    num_first = min(max_positive, num, total)
    num_second = min(num, total)
    lot, first = top_k(jnp.where(positive, noise, -1.0), num_first)
    num_positive = jnp.sum(lot >= 0.0)
    lot, second = top_k(jnp.where(negative & ~positive, noise, -1.0), num_second)
    num_negative = jnp.sum(lot >= 0.0)

    slots = jnp.arange(num)
    is_positive = slots < num_positive
    valid = slots < num_positive + num_negative
    rows = jnp.concatenate([first, second])
    if num == 0 or total == 0:
        return Sampled(jnp.zeros(num, jnp.int32), is_positive, valid)
    where = jnp.where(is_positive, slots, num_first + slots - num_positive)
    indices = jnp.where(valid, rows[jnp.clip(where, 0, rows.shape[0] - 1)], 0)
    return Sampled(indices.astype(jnp.int32), is_positive, valid)
