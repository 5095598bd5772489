"""Adaptive RoIAlign against sampling one by one."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drkd_jax.ops.roi_align import roi_align
from tests import oracles

MAP = np.random.default_rng(0).standard_normal((1, 7, 9, 3)).astype(np.float32)
BOXES = np.asarray(
    [
        [
            (4, 3, 20, 25),  # ordinary
            (0, 0, 36, 28),  # the whole map: many samples a bin
            (10, 10, 10.5, 11),  # under a map pixel
            (30, 22, 36, 28),  # the far corner
            (5, 5, 5, 5),  # nothing
            (0, 12, 36, 14),  # long and narrow
        ]
    ],
    np.float32,
)


@partial(jax.jit, static_argnums=(2, 3, 4))
def run(maps, boxes, stride, bins, aligned=False, sizes=None):
    levels = jnp.zeros(boxes.shape[:2], jnp.int32)
    return roi_align((maps,), boxes, levels, (stride,), bins, 0, aligned, sizes)


def sample(x, y_at, x_at, limits):
    height, width = limits
    if not (-1 <= y_at <= height and -1 <= x_at <= width):
        return np.zeros(x.shape[2])
    y_at, x_at = np.clip(y_at, 0, height - 1), np.clip(x_at, 0, width - 1)
    y, left = int(y_at), int(x_at)
    below, right = min(y + 1, height - 1), min(left + 1, width - 1)
    fy, fx = y_at - y, x_at - left
    top = (1 - fx) * x[y, left] + fx * x[y, right]
    bottom = (1 - fx) * x[below, left] + fx * x[below, right]
    return (1 - fy) * top + fy * bottom


def slow(x, box, stride, bins, aligned, limits=None):
    x0, y0, x1, y1 = box.astype(np.float64) / stride - (0.5 if aligned else 0)
    width, height = x1 - x0, y1 - y0
    if not aligned:
        width, height = max(width, 1), max(height, 1)
    across, down = math.ceil(width / bins), math.ceil(height / bins)
    for cells in (width / bins, height / bins):
        oracles.clear_of(cells, round(cells))
    out = np.zeros((bins, bins, x.shape[2]))
    for i in range(bins):
        for j in range(bins):
            for k in range(down):
                for m in range(across):
                    out[i, j] += sample(
                        x,
                        y0 + (i + (k + 0.5) / down) * height / bins,
                        x0 + (j + (m + 0.5) / across) * width / bins,
                        limits or x.shape[:2],
                    )
            out[i, j] /= max(across * down, 1)
    return out


@pytest.mark.parametrize(("bins", "aligned"), [(3, False), (7, True)])
def test_equals_samples_one_by_one(bins, aligned):
    found = run(MAP, BOXES, 4, bins, aligned)
    wanted = np.stack([slow(MAP[0], box, 4, bins, aligned) for box in BOXES[0]])
    np.testing.assert_allclose(found[0], wanted, atol=5e-6)


def test_stops_at_the_image_where_sizes_are_given():
    sizes = jnp.asarray([[18, 26]])  # 5 x 7 map pixels
    found = run(MAP, BOXES, 4, 3, sizes=sizes)
    wanted = np.stack([slow(MAP[0], box, 4, 3, False, (5, 7)) for box in BOXES[0]])
    np.testing.assert_allclose(found[0], wanted, atol=5e-6)
    garbage = MAP.copy()
    garbage[:, 5:], garbage[:, :, 7:] = 100, -100
    again = run(garbage, BOXES, 4, 3, sizes=sizes)
    np.testing.assert_array_equal(found, again)


def test_equals_fixed_samples_where_the_box_asks_for_as_many():
    """6 map pixels in 3 bins give 2 samples per bin."""
    box = np.asarray([[(4, 0, 28, 24)]], np.float32)
    fixed = roi_align((MAP,), box, np.zeros((1, 1), np.int32), (4,), 3, 2, False)
    np.testing.assert_allclose(run(MAP, box, 4, 3), fixed, atol=5e-6)


def test_garbage_boxes_give_finite_regions_and_gradients():
    boxes = np.asarray([[(0, 0, 0, 0), (50, 40, 3, 2), (-1e6, -1e6, 1e6, 1e6)]], np.float32)
    both = jax.jit(jax.value_and_grad(lambda x: run(x, boxes, 4, 3).sum()))
    value, gradient = both(MAP)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_is_linear_in_the_map_and_keeps_its_dtype():
    gradient = jax.jit(jax.grad(lambda x: run(x, BOXES, 4, 3).sum()))(MAP)
    # Every bin's weights sum to 1 where no sample lies outside of the map.
    total = 3 * 9 * BOXES.shape[1]
    assert float(gradient.sum()) == pytest.approx(total, rel=1e-5)
    half = jnp.asarray(MAP, jnp.bfloat16)
    assert run(half, BOXES, 4, 3).dtype == jnp.bfloat16
