"""The positions at which RoIAlign reads each region, and the weights of the cells there.

Letters: B images, R regions, T of them (or of their parts) at once, S bins along one axis.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from drkd_jax.types import Array

# Terms of one fused sum: with more than 31 bits can count it was 60 times slower on an H100.
MOST = 2**31 - 1


class Axis(NamedTuple):
    """The positions of each region's samples along one axis, in cells of its own map."""

    start: Array  # of the first bin
    step: Array  # from sample to sample
    samples: Array  # per bin, a whole number
    size: Array  # cells of the map; nothing is read beyond
    low: Array  # first cell that is read, int32
    high: Array  # last one


class How(NamedTuple):
    """The static settings of RoIAlign."""

    bins: int
    samples: int  # per bin and axis; 0: as many as a bin has cells

    @property
    def samples_of_cell(self) -> int:
        """The most samples of a bin that can touch one cell."""
        # Samples are more than half a cell apart, so two cells hold 4; 1 more for rounding.
        return self.samples or 5


def axis(first: Array, last: Array, size: Array, how: How, shortest: float) -> Axis:
    """The samples of regions from ``first`` to ``last``, in cells.

    Args:
        first: upper (left) side of each region.
        last: lower (right) side.
        size: cells of the map that each region is read from.
        how: bins and samples.
        shortest: shorter regions are widened to this; 0: none is.
    """
    length = jnp.maximum(last - first, shortest) if shortest > 0 else last - first
    if how.samples:
        samples = jnp.full_like(length, how.samples)
    else:
        samples = jnp.ceil(length / how.bins)
        # A quotient that rounding lifts above a whole number must not add a sample.
        samples = jnp.maximum(samples - ((samples - 1) * how.bins >= length), 0)
    step = length / how.bins / jnp.maximum(samples, 1)
    size = size.astype(first.dtype)
    ends = first + 0.5 * step, first + (how.bins - 1) * (length / how.bins) + (samples - 0.5) * step
    low, high = (
        jnp.floor(jnp.clip(end, 0, size - 1)) for end in (jnp.minimum(*ends), jnp.maximum(*ends))
    )
    high = jnp.minimum(high + 1, size - 1)
    return Axis(first, step, samples, size, low.astype(jnp.int32), high.astype(jnp.int32))


def weights(own: Axis, begin: Array, cells: int, how: How) -> Array:
    """Weights of some consecutive cells in each bin: ``[T, S, cells]``.

    Args:
        own: the samples of each region.
        begin: first cell: ``[T, 1]``, or ``[T, S]`` if each bin has its own cells.
        cells: number of cells along this axis.
        how: bins and samples.
    """
    start, step, samples, size, _, high = (x[:, None, None] for x in own)
    cell = begin[..., None] + np.arange(cells, dtype=np.int32)
    place = cell.astype(start.dtype)
    bins = np.arange(how.bins, dtype=start.dtype)[:, None]
    first = start + bins * (step * jnp.maximum(samples, 1))
    number = jnp.zeros_like(place)
    if not how.samples:
        # The first sample that lies less than one cell before this cell.
        safe = jnp.where(step > 0, step, 1)
        number = jnp.maximum(jnp.floor((place - 1 - first) / safe - 0.5), 0)
    total: Any = 0.0
    for _ in range(how.samples_of_cell):
        here = first + (number + 0.5) * step
        # Up to one cell outside the map the edge cell is read, further out nothing.
        read = (number < samples) & (here >= -1) & (here <= size)
        hat = jnp.maximum(1 - jnp.abs(jnp.clip(here, 0, size - 1) - place), 0)
        total += jnp.where(read, hat, 0)
        number += 1
    return jnp.where(cell <= high, total, 0) / jnp.maximum(samples, 1)


class Plan(NamedTuple):
    """The position of every region, ``[B, R]`` each."""

    there: Array  # whether the region is read at all
    y: Axis
    x: Axis
    base: Array  # first cell of the region's map among those of all maps
    width: Array  # of that map, cells


def wide(dtype: Any) -> Any:
    """The dtype of sums: float32 at least."""
    return jnp.promote_types(jnp.float32, dtype)
