"""The reading of RoIAlign: regions as tiles of their level, two small products a tile.

Letters: B pictures, R regions, T tiles of one round, S bins along one axis, h w C one map, n m a
tile's cells along y and x.

The samples of a region form a grid, and a bilinear weight is a weight along y times a weight along
x. So a region is exactly (weights along y) x (its cells) x (weights along x), whatever the number
of samples, which only shapes the weights. The cells that a region touches are cut into tiles of
`TILE`: as many as it needs, one after the other in one list, so that a long box costs its own
tiles and no other region anything. The list is worked off in rounds of T tiles, by a loop that runs
as often as the fullest picture asks for.

Backward, a tile is the transposed two products, added to the map's gradient line by line. See
`roi_align.py` for what this costs and what it was chosen over.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from drkd_jax.ops.platform import platform
from drkd_jax.types import Array

#: Cells of a tile along y and x.
TILE = (16, 16)

# Tiles of all pictures in one round. A CPU wants them to stay in its caches, a GPU wants work.
_ROUND = {"cpu": 8}
_ROUND_ELSEWHERE = 1024
_FEW = 4  # pictures

_HIGHEST = jax.lax.Precision.HIGHEST
_LINES = jax.lax.GatherDimensionNumbers((2, 3), (), (0,))
_BLOCKS = jax.lax.ScatterDimensionNumbers((2, 3), (), (0,))


class Axis(NamedTuple):
    """Where the samples of each region lie along one axis, in cells of its own map."""

    start: Array  # of the first bin
    step: Array  # from sample to sample
    samples: Array  # of a bin, a whole number
    size: Array  # cells of the map; nothing is read beyond
    low: Array  # first cell that is read, int32
    high: Array  # last one


class How(NamedTuple):
    """What is static about a reading."""

    bins: int
    samples: int  # of a bin and axis; 0: as many as a bin has cells

    @property
    def samples_of_cell(self) -> int:
        """How many samples of a bin can touch one cell, at most."""
        # Two cells' width holds 4 samples, more than half a cell apart; 1 for the rounding.
        return self.samples or 5


def axis(first: Array, last: Array, size: Array, how: How, shortest: float) -> Axis:
    """The samples of regions from ``first`` to ``last``, in cells.

    Args:
        first: upper (left) side of each region.
        last: lower (right) side.
        size: cells of the map that each region is read from.
        how: bins and samples.
        shortest: shorter regions are widened to it; 0: none is.
    """
    length = jnp.maximum(last - first, shortest) if shortest > 0 else last - first
    if how.samples:
        samples = jnp.full_like(length, how.samples)
    else:
        samples = jnp.ceil(length / how.bins)
        # A division that rounds up at a whole number must not add a sample.
        samples = jnp.maximum(samples - ((samples - 1) * how.bins >= length), 0)
    step = length / how.bins / jnp.maximum(samples, 1)
    size = size.astype(first.dtype)
    ends = first + 0.5 * step, first + (how.bins - 1) * (length / how.bins) + (samples - 0.5) * step
    low, high = (
        jnp.floor(jnp.clip(end, 0, size - 1)) for end in (jnp.minimum(*ends), jnp.maximum(*ends))
    )
    high = jnp.minimum(high + 1, size - 1)
    return Axis(first, step, samples, size, low.astype(jnp.int32), high.astype(jnp.int32))


def _weights(own: Axis, begin: Array, cells: int, how: How) -> Array:
    """Weights of a tile's cells in each bin: ``[T, S, cells]``.

    Args:
        own: of each tile's region.
        begin: first cell of each tile.
        cells: along this axis.
        how: bins and samples.
    """
    start, step, samples, size, _, high = (x[:, None, None] for x in own)
    cell = begin[:, None, None] + np.arange(cells, dtype=np.int32)
    place = cell.astype(start.dtype)
    bins = np.arange(how.bins, dtype=start.dtype)[:, None]
    first = start + bins * (step * jnp.maximum(samples, 1))
    number = jnp.zeros_like(place)
    if not how.samples:
        # The first sample that lies less than a cell before this one.
        safe = jnp.where(step > 0, step, 1)
        number = jnp.maximum(jnp.floor((place - 1 - first) / safe - 0.5), 0)
    total: Any = 0.0
    for _ in range(how.samples_of_cell):
        here = first + (number + 0.5) * step
        # Nothing further out than one cell is read; up to there the cell at the edge is.
        read = (number < samples) & (here >= -1) & (here <= size)
        hat = jnp.maximum(1 - jnp.abs(jnp.clip(here, 0, size - 1) - place), 0)
        total += jnp.where(read, hat, 0)
        number += 1
    return jnp.where(cell <= high, total, 0) / jnp.maximum(samples, 1)


class Plan(NamedTuple):
    """Where every region is read, ``[B, R]`` each."""

    y: Axis
    x: Axis
    base: Array  # first cell of the region's map among those of all maps
    width: Array  # of that map, cells


class _Round(NamedTuple):
    """T tiles of one picture."""

    region: Array  # [T]
    lines: Array  # [T, n] first cell of each line of a tile, among the cells of all maps
    rows: Array  # [T, S, n] weights along y
    columns: Array  # [T, S, m] weights along x


def _num_tiles(plan: Plan) -> tuple[Array, Array]:
    """Tiles of each region, and how many of them lie side by side."""
    down = (plan.y.high - plan.y.low) // TILE[0] + 1
    across = (plan.x.high - plan.x.low) // TILE[1] + 1
    return down * across, across


def _take(rows: Array, index: Array) -> Array:
    """Rows by an index that is known to be one: no program for those that lie outside."""
    return rows.at[index].get(mode="promise_in_bounds")


def _round(plan: Plan, number: Array, per_round: int, how: How) -> _Round:
    """The tiles of round ``number`` of one picture; beyond its last one, tiles of weight 0."""
    count, across = _num_tiles(plan)
    ends = jnp.cumsum(count)
    tile = number * per_round + jnp.arange(per_round)
    region = jnp.minimum(jnp.sum(ends <= tile[:, None], axis=1), ends.shape[0] - 1)
    own, count, across, end = jax.tree.map(
        lambda of_region: _take(of_region, region), (plan, count, across, ends)
    )
    tile_of_region = tile - (end - count)
    top = own.y.low + tile_of_region // across * TILE[0]
    left = own.x.low + tile_of_region % across * TILE[1]
    rows = _weights(own.y, top, TILE[0], how)
    rows = jnp.where((tile < ends[-1])[:, None, None], rows, 0)
    columns = _weights(own.x, left, TILE[1], how)
    lines = (top[:, None] + np.arange(TILE[0])) * own.width[:, None] + left[:, None]
    return _Round(region, own.base[:, None] + lines, rows, columns)


def _work_off(
    plan: Plan, how: How, one: Callable[..., Array], result: Array, given: Array
) -> Array:
    """Runs ``one(round, result, given)`` of each picture for every round."""
    # A number of pictures that is not known yet (`jax.export`) is taken for a few.
    pictures = result.shape[0] if isinstance(result.shape[0], int) else _FEW
    per_round = max(1, _ROUND.get(platform(), _ROUND_ELSEWHERE) // pictures)

    def every_picture(number: Array, result: Array) -> Array:
        def of_one(plan: Plan, result: Array, given: Array) -> Array:
            return one(_round(plan, number, per_round, how), result, given)

        return jax.vmap(of_one)(plan, result, given)

    rounds = -(-jnp.sum(_num_tiles(plan)[0], axis=1) // per_round)
    return jax.lax.fori_loop(0, jnp.max(rounds), every_picture, result)


def _wide(dtype: Any) -> Any:
    return jnp.promote_types(jnp.float32, dtype)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def read(flat: Array, plan: Plan, how: How) -> Float[Array, "B R S S C"]:
    """Every bin of every region, in float32 at least.

    Args:
        flat: ``[B, P, C]`` the cells of all maps, line by line, one map after the other.
        plan: where the regions are.
        how: bins and samples.
    """
    (B, P, C), R, S, wide = flat.shape, plan.base.shape[1], how.bins, _wide(flat.dtype)
    result = jnp.zeros((B, R, S, S, C), wide)
    if result.size == 0:
        return result
    # A line that begins in the last cell ends within the array.
    flat = jnp.pad(flat, ((0, 0), (0, TILE[1]), (0, 0)))

    def one(tiles: _Round, result: Array, flat: Array) -> Array:
        T = len(tiles.region)
        at = jnp.clip(tiles.lines, 0, P)[..., None]
        cells = jax.lax.gather(flat, at, _LINES, (TILE[1], C), mode="promise_in_bounds")
        cells = cells.astype(wide).reshape(T, TILE[0], TILE[1] * C)
        strips = jnp.matmul(tiles.rows, cells, precision=_HIGHEST).reshape(T, S, TILE[1], C)
        columns = jnp.broadcast_to(tiles.columns[:, None], (T, S, S, TILE[1]))
        bins = jnp.matmul(columns, strips, precision=_HIGHEST)
        return result.at[tiles.region].add(bins, mode="promise_in_bounds", indices_are_sorted=True)

    return _work_off(plan, how, one, result, flat)


def _read_forward(flat: Array, plan: Plan, how: How) -> tuple[Array, Any]:
    empty = jnp.zeros((flat.shape[1], 0), flat.dtype)  # carries the shape and the dtype only
    return read(flat, plan, how), (empty, plan)


def _read_backward(how: How, saved: Any, gradient: Array) -> tuple[Array, None]:
    empty, plan = saved
    (B, _, S, _, C), P = gradient.shape, empty.shape[0]
    result = jnp.zeros((B, P + TILE[1], C), _wide(empty.dtype))

    def one(tiles: _Round, result: Array, gradient: Array) -> Array:
        T = len(tiles.region)
        rows, columns = tiles.rows.swapaxes(1, 2), tiles.columns.swapaxes(1, 2)
        columns = jnp.broadcast_to(columns[:, None], (T, S, TILE[1], S))
        strips = jnp.matmul(columns, _take(gradient, tiles.region), precision=_HIGHEST)
        cells = jnp.matmul(rows, strips.reshape(T, S, TILE[1] * C), precision=_HIGHEST)
        return jax.lax.scatter_add(
            result,
            jnp.clip(tiles.lines, 0, P)[..., None],
            cells.reshape(T, *TILE, C),
            _BLOCKS,
            mode="promise_in_bounds",
        )

    if gradient.size:
        result = _work_off(plan, how, one, result, gradient)
    return result[:, :P].astype(empty.dtype), None


read.defvjp(_read_forward, _read_backward)
