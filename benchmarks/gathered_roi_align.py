"""RoIAlign by gathering single cells, the alternative to `ops.roi_align`.

Letters: B images, P cells of all maps, R regions, S bins, C channels.

Fixed samples only. Every corner of every sample is one gather as large as the output. There are
three backward passes: "autodiff" is JAX's own, one scatter-add per gather; "in place" adds all of
them into one buffer, one after the other; "sorted" first sorts the cells and sums equal ones, so
that no two updates collide.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

Backward = Literal["autodiff", "in place", "sorted"]


def axis(low: Any, high: Any, size: Any, bins: int, samples: int) -> tuple[Any, Any]:
    """Cells and weights along one axis, `[2 samples, B, R, S]`."""
    step = (jnp.maximum(high - low, 1) / (bins * samples))[..., None]
    at = low[..., None] + step * (np.arange(bins * samples, dtype=np.float32) + 0.5)
    at = at.reshape(*low.shape, bins, samples)
    size = size[..., None, None]
    counts = (at >= -1) & (at <= size)
    at = jnp.clip(at, 0, size - 1)
    cell = jnp.floor(at)
    share = at - cell
    cells = jnp.concatenate([cell, jnp.minimum(cell + 1, size - 1)], axis=-1).astype(jnp.int32)
    weights = jnp.where(jnp.tile(counts, 2), jnp.concatenate([1 - share, share], axis=-1), 0)
    return jnp.moveaxis(cells, -1, 0), jnp.moveaxis(weights / samples, -1, 0)


def readings(
    maps: Any, boxes: Any, levels: Any, strides: tuple[int, ...], bins: int, samples: int
) -> tuple[Any, Any, Any]:
    """All maps flat, and each bin's reads: indices and weights `[4 samples^2, B, R, S, S]`."""
    shapes = np.asarray([plane.shape[1:3] for plane in maps], np.int32)
    cells = shapes[:, 0] * shapes[:, 1]
    base = jnp.asarray(np.cumsum(cells) - cells)[levels][..., None, None]
    ends = jnp.asarray(shapes)[levels]
    scales = 1 / jnp.asarray(strides, jnp.float32)[levels]
    x0, y0, x1, y1 = jnp.moveaxis(boxes * scales[..., None], -1, 0)
    ys, down = axis(y0, y1, ends[..., 0], bins, samples)
    xs, across = axis(x0, x1, ends[..., 1], bins, samples)
    lines = ys[:, None, ..., :, None] * ends[..., 1][..., None, None]
    indices = base + lines + xs[None, ..., None, :]
    weights = down[:, None, ..., :, None] * across[None, ..., None, :]
    flat = jnp.concatenate(
        [plane.reshape(len(plane), -1, plane.shape[3]) for plane in maps], axis=1
    )
    return flat, indices.reshape(-1, *indices.shape[2:]), weights.reshape(-1, *weights.shape[2:])


def read(flat: Any, indices: Any, weights: Any) -> Any:
    total = jnp.zeros((*indices.shape[1:], flat.shape[-1]), jnp.float32)
    for at, weight in zip(indices, weights, strict=True):
        rows = jax.vmap(lambda plane, i: plane.at[i].get(mode="promise_in_bounds"))(flat, at)
        total += weight[..., None] * rows
    return total


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def read_with(flat: Any, indices: Any, weights: Any, backward: Backward) -> Any:
    return read(flat, indices, weights)


def forward(flat: Any, indices: Any, weights: Any, backward: Backward) -> tuple[Any, Any]:
    return read(flat, indices, weights), (jnp.zeros((flat.shape[1], 0)), indices, weights)


def in_place(num_cells: int, indices: Any, weights: Any, gradient: Any) -> Any:
    def add(buffer: Any, reading: tuple[Any, Any]) -> tuple[Any, None]:
        at, weight = reading
        updates = weight[..., None] * gradient
        return jax.vmap(lambda b, i, u: b.at[i].add(u, mode="promise_in_bounds"))(
            buffer, at, updates
        ), None

    empty = jnp.zeros((len(gradient), num_cells, gradient.shape[-1]), jnp.float32)
    return jax.lax.scan(add, empty, (indices, weights))[0]


def by_sorting(num_cells: int, indices: Any, weights: Any, gradient: Any) -> Any:
    def one(indices: Any, weights: Any, gradient: Any) -> Any:
        bins = gradient.reshape(-1, gradient.shape[-1])
        order = jnp.argsort(indices.ravel())
        updates = weights.ravel()[order][:, None] * bins[order % len(bins)]
        return jax.ops.segment_sum(
            updates, indices.ravel()[order], num_cells, indices_are_sorted=True
        )

    return jax.vmap(one, in_axes=(1, 1, 0))(indices, weights, gradient)


def backward(backward: Backward, saved: Any, gradient: Any) -> tuple[Any, None, None]:
    empty, indices, weights = saved
    run = {"in place": in_place, "sorted": by_sorting}[backward]
    return run(len(empty), indices, weights, gradient), None, None


read_with.defvjp(forward, backward)


def roi_align(
    maps: Any,
    boxes: Any,
    levels: Any,
    strides: tuple[int, ...],
    bins: int,
    samples: int,
    backward: Backward,
) -> Any:
    """Like `ops.roi_align.roi_align`, not aligned; float32."""
    flat, indices, weights = readings(maps, boxes, levels, strides, bins, samples)
    if backward == "autodiff":
        return read(flat, indices, weights)
    return read_with(flat, indices, weights, backward)
