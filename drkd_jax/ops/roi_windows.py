"""RoIAlign's forward pass on a GPU: every bin is computed from its own window of cells.

Letters: B images, P cells of all maps, R regions, S bins along one axis, W cells of a window
along one axis, C channels.

A bin of a region that is read from the level for its size touches few cells. One sum per bin over a
window of `WINDOW` x `WINDOW` cells is a single kernel for all regions, without a loop, intermediate
sums or atomic additions. It takes a third of a tile's multiplications, since a tile combines each
of its cells with all bins. Regions with larger bins, long or large ones, are left to the tiles of
`roi_tiles.py`; so is the gradient, in which windows would add to every cell several times.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from drkd_jax.ops.roi_plan import MOST, Axis, How, Plan, weights, wide
from drkd_jax.types import Array

#: Cells of a window along each axis. At 7, nine in ten sampled regions fit.
WINDOW = 7
# Regions of fewer bins seldom fit.
_BINS = 5

_WINDOWS = jax.lax.GatherDimensionNumbers((3, 4), (), (0,))


def worth(how: How) -> bool:
    """Whether regions with this number of bins are read in windows at all."""
    return how.bins >= _BINS


def fits(plan: Plan, how: How) -> Array:
    """``[B, R]``: whether each bin of a region fits in one window."""
    spans = (_spans(own, how) for own in (plan.y, plan.x))
    y, x = (jnp.all(last - first < WINDOW, axis=-1) for first, last in spans)
    return y & x


def read(flat: Array, plan: Plan, how: How) -> Array:
    """Every bin of every region: ``[B, R, S, S, C]``, float32 at least; 0 for regions not read.

    Args:
        flat: ``[B, P, C]`` the cells of all maps, and `WINDOW` more.
        plan: the positions of the regions; each region that is read must fit.
        how: bins and samples.
    """
    part = jax.vmap(partial(_read, how=how))

    (B, R), S, C = plan.base.shape, how.bins, flat.shape[-1]
    terms = R * S * S * WINDOW * C
    if not isinstance(B, int) or B * terms <= MOST:
        return part(flat, plan)
    each = max(1, R * MOST // (B * terms))
    cut = (_rows(plan, first, first + each) for first in range(0, R, each))
    return jnp.concatenate([part(flat, rows) for rows in cut], axis=1)


def _rows(plan: Plan, first: int, last: int) -> Plan:
    """The part of a plan for some regions."""
    found: Plan = jax.tree.map(lambda rows: rows[:, first:last], plan)
    return found


def _spans(own: Axis, how: How) -> tuple[Array, Array]:
    """First and last cell of each bin, ``[..., S]``."""
    start, step, samples, size = (x[..., None] for x in own[:4])
    number = jnp.maximum(samples, 1)
    first = start + np.arange(how.bins, dtype=start.dtype) * (step * number)
    ends = first + 0.5 * step, first + (number - 0.5) * step
    low, high = (
        jnp.floor(jnp.clip(end, 0, size - 1)) for end in (jnp.minimum(*ends), jnp.maximum(*ends))
    )
    return low.astype(jnp.int32), jnp.minimum(high + 1, size - 1).astype(jnp.int32)


def _read(flat: Array, plan: Plan, how: How) -> Array:
    """`read` for one image."""
    W, C = WINDOW, flat.shape[1]
    top, left = _spans(plan.y, how)[0], _spans(plan.x, how)[0]
    rows = weights(plan.y, top, W, how) * plan.there[:, None, None]
    columns = weights(plan.x, left, W, how)
    # Lines below the region have weight 0; they repeat its last line.
    lines = jnp.minimum(top[..., None] + np.arange(W), plan.y.high[:, None, None])
    lines = plan.base[:, None, None] + lines * plan.width[:, None, None]
    total: Any = 0.0
    for i in range(W):
        at = lines[:, :, None, i] + left[:, None]
        cells = jax.lax.gather(flat, at[..., None], _WINDOWS, (W, C), mode="promise_in_bounds")
        each = rows[:, :, None, None, i] * columns[:, None]
        total += jnp.sum(each[..., None] * cells.astype(wide(flat.dtype)), axis=3)
    return total
