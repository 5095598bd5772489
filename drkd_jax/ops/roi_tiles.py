"""RoIAlign by tiles: each region is split into tiles of its level, with two small products each.

Letters: B images, R regions, T tiles of one round, S bins along one axis, h w C one map, n m a
tile's cells along y and x.

The samples of a region form a grid, and a bilinear weight is a weight along y times a weight along
x. So a region is exactly (weights along y) x (its cells) x (weights along x), whatever the number
of samples, which only affects the weights. The cells that a region touches are split into tiles of
one size, as many as it needs. All tiles of an image form one list, so a long box costs only its
own tiles. A loop processes the list in rounds of T tiles, as many as the fullest image needs.

In the backward pass a tile is the two transposed products, added to the map's gradient line by
line. `roi_align.py` compares the cost with that of alternatives.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from drkd_jax.ops import roi_windows
from drkd_jax.ops.platform import platform
from drkd_jax.ops.roi_plan import MOST, How, Plan, weights, wide
from drkd_jax.types import Array

# On a CPU: cells of a tile along y and x, and tiles of all images per round, which should fit in
# its caches.
CPU_TILE = (16, 16)
CPU_ROUND = 8
_FEW = 4  # images
# On all others. There the size of a round is per image: if it were per batch, many devices would
# need many rounds for the images that each of them holds.
TILE = (8, 8)
ROUND = 512

_HIGHEST = jax.lax.Precision.HIGHEST
_LINES = jax.lax.GatherDimensionNumbers((2, 3), (), (0,))
_BLOCKS = jax.lax.ScatterDimensionNumbers((2, 3), (), (0,))


class _Round(NamedTuple):
    """T tiles of one image."""

    region: Array  # [T]
    there: Array  # [T] whether the tile exists
    lines: Array  # [T, n] first cell of each line of a tile, among the cells of all maps
    used: Array  # [T, n] lines that belong to the region; the others repeat its last one
    rows: Array  # [T, S, n] weights along y
    columns: Array  # [T, S, m] weights along x


class _Form(NamedTuple):
    """How the tiles are processed."""

    tile: tuple[int, int]  # cells along y and x
    per_round: int  # tiles of each image
    sums: bool  # products written as sums, which a GPU's compiler fuses with their inputs
    windows: bool  # in the forward pass, regions of small bins are read by `roi_windows.py`


def _form(images: Any, how: How, channels: int) -> _Form:
    if platform() == "cpu":
        # A symbolic number of images (`jax.export`) is assumed to be small.
        known = images if isinstance(images, int) else _FEW
        return _Form(CPU_TILE, max(1, CPU_ROUND // max(1, known)), sums=False, windows=False)
    gpu = platform() == "gpu"
    per_round = ROUND
    if isinstance(images, int):
        terms = images * how.bins * TILE[0] * TILE[1] * channels  # of one tile per image
        per_round = max(1, min(ROUND, MOST // max(1, terms)))
    return _Form(TILE, per_round, sums=gpu, windows=gpu)


def _num_tiles(plan: Plan, tile: tuple[int, int]) -> tuple[Array, Array]:
    """The number of tiles of each region, and how many of them lie side by side."""
    down = (plan.y.high - plan.y.low) // tile[0] + 1
    across = (plan.x.high - plan.x.low) // tile[1] + 1
    return jnp.where(plan.there, down * across, 0), across


def num_rounds(plan: Plan, form: _Form) -> Array:
    """The number of rounds for the plan: as many as its fullest image needs."""
    tiles = jnp.sum(_num_tiles(plan, form.tile)[0], axis=1)
    return jnp.max(-(-tiles // form.per_round))


def _take(rows: Array, index: Array) -> Array:
    """Rows by an index known to be in range, so that no code for other indices is compiled."""
    return rows.at[index].get(mode="promise_in_bounds")


def _round(plan: Plan, number: Array, form: _Form, how: How) -> _Round:
    """The tiles of round ``number`` of one image; past its last round there are none."""
    height, width = form.tile
    count, across = _num_tiles(plan, form.tile)
    ends = jnp.cumsum(count)
    tile = number * form.per_round + jnp.arange(form.per_round)
    region = jnp.minimum(jnp.sum(ends <= tile[:, None], axis=1), ends.shape[0] - 1)
    own, count, across, end = jax.tree.map(
        lambda of_region: _take(of_region, region), (plan, count, across, ends)
    )
    tile_of_region = tile - (end - count)
    top = own.y.low + tile_of_region // across * height
    left = own.x.low + tile_of_region % across * width
    rows = weights(own.y, top[:, None], height, how)
    columns = weights(own.x, left[:, None], width, how)
    line = top[:, None] + np.arange(height)
    last, there = own.y.high[:, None], tile < ends[-1]
    lines = own.base[:, None] + jnp.minimum(line, last) * own.width[:, None] + left[:, None]
    return _Round(region, there, lines, there[:, None] & (line <= last), rows, columns)


def _work_off(
    plan: Plan, how: How, form: _Form, one: Callable[..., Any], result: Any, given: Any
) -> Any:
    """Runs ``one(round, result, given)`` for each image in every round."""

    def every_image(number: Array, result: Any) -> Any:
        def of_one(plan: Plan, result: Any, given: Any) -> Any:
            return one(_round(plan, number, form, how), result, given)

        return jax.vmap(of_one)(plan, result, given)

    return jax.lax.fori_loop(0, num_rounds(plan, form), every_image, result)


def _bins(tiles: _Round, cells: Array, form: _Form, how: How) -> Array:
    """What the tiles' cells ``[T, n, m, C]`` contribute to each bin: ``[T, S, S, C]``."""
    T, n, m, C = cells.shape
    S, dtype = how.bins, wide(cells.dtype)
    if form.sums:
        strips = jnp.sum(tiles.rows[..., None, None] * cells[:, None].astype(dtype), axis=2)
        return jnp.sum(tiles.columns[:, None, :, :, None] * strips[:, :, None], axis=3)
    cells = cells.astype(dtype).reshape(T, n, m * C)
    strips = jnp.matmul(tiles.rows, cells, precision=_HIGHEST).reshape(T, S, m, C)
    columns = jnp.broadcast_to(tiles.columns[:, None], (T, S, S, m))
    return jnp.matmul(columns, strips, precision=_HIGHEST)


def _cells(tiles: _Round, bins: Array, form: _Form) -> Array:
    """The transpose of `_bins`: from bins ``[T, S, S, C]`` to cells ``[T, n, m, C]``."""
    T, S, _, C = bins.shape
    bins = bins.astype(wide(bins.dtype))
    if form.sums:
        strips = jnp.sum(tiles.columns[:, None, :, :, None] * bins[:, :, :, None], axis=2)
        return jnp.sum(tiles.rows[..., None, None] * strips[:, :, None], axis=1)
    rows, columns = tiles.rows.swapaxes(1, 2), tiles.columns.swapaxes(1, 2)
    columns = jnp.broadcast_to(columns[:, None], (T, S, *columns.shape[1:]))
    strips = jnp.matmul(columns, bins, precision=_HIGHEST)
    cells = jnp.matmul(rows, strips.reshape(T, S, -1), precision=_HIGHEST)
    return cells.reshape(T, *form.tile, C)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def read(flats: tuple[Array, ...], plan: Plan, how: How) -> tuple[Array, ...]:
    """Every bin of every region, for several sets of maps of the same layout, in one loop.

    Args:
        flats: ``[B, P, C]`` each, the cells of all maps of a set, line by line, one map after the
            other; C may differ.
        plan: the positions of the regions.
        how: bins and samples.

    Returns:
        ``[B, R, S, S, C]`` of each set, in its dtype; sums are in float32 at least. Regions that
        are not read are 0.
    """
    (B, _, _), R, S = flats[0].shape, plan.base.shape[1], how.bins
    form = _form(B, how, max(x.shape[2] for x in flats))
    # Padded, so that a line that begins in the last cell still ends within the array.
    more = max(form.tile[1], roi_windows.WINDOW if form.windows else 0)
    padded = tuple(jnp.pad(x, ((0, 0), (0, more), (0, 0))) for x in flats)
    if form.windows and roi_windows.worth(how):
        fits = roi_windows.fits(plan, how)
        own = plan._replace(there=plan.there & fits)
        results = tuple(roi_windows.read(x, own, how) for x in padded)
        plan = plan._replace(there=plan.there & ~fits)
    else:
        results = tuple(jnp.zeros((B, R, S, S, x.shape[2]), wide(x.dtype)) for x in flats)

    def one(
        tiles: _Round, results: tuple[Array, ...], flats: tuple[Array, ...]
    ) -> tuple[Array, ...]:
        region = jnp.where(tiles.there, tiles.region, R)
        found = []
        for result, flat in zip(results, flats, strict=True):
            line = form.tile[1], flat.shape[1]
            at = tiles.lines[..., None]
            cells = jax.lax.gather(flat, at, _LINES, line, mode="promise_in_bounds")
            bins = _bins(tiles, cells, form, how)
            found.append(result.at[region].add(bins, mode="drop", indices_are_sorted=True))
        return tuple(found)

    if B and R:
        results = _work_off(plan, how, form, one, results, padded)
    return tuple(r.astype(x.dtype) for r, x in zip(results, flats, strict=True))


def _read_forward(flats: tuple[Array, ...], plan: Plan, how: How) -> tuple[Any, Any]:
    return read(flats, plan, how), (flats[0][0, :, :0], plan)  # carries the number of cells only


def _read_backward(how: How, saved: Any, gradients: tuple[Array, ...]) -> tuple[Any, None]:
    empty, plan = saved
    # One loop per set: if a set's gradient is not needed, the compiler drops its loop.
    return tuple(_spread(gradient, len(empty), plan, how) for gradient in gradients), None


def _spread(gradient: Array, P: int, plan: Plan, how: How) -> Array:
    """The gradient of one set's cells, ``[B, P, C]``."""
    B, _, _, _, C = gradient.shape
    form = _form(B, how, C)
    result = jnp.zeros((B, P + form.tile[1], C), wide(gradient.dtype))

    def one(tiles: _Round, result: Array, gradient: Array) -> Array:
        at = jnp.where(tiles.used, tiles.lines, result.shape[0])[..., None]
        cells = _cells(tiles, _take(gradient, tiles.region), form)
        return jax.lax.scatter_add(result, at, cells, _BLOCKS, mode="drop")

    if gradient.size:
        result = _work_off(plan, how, form, one, result, gradient)
    return result[:, :P].astype(gradient.dtype)


read.defvjp(_read_forward, _read_backward)
