from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drkd_jax.ops import roi_align as ops
from tests import oracles

STRIDES = (4, 8)
B, R, C = 2, 7, 3


@pytest.fixture(scope="module")
def scene():
    """Maps of a 44 x 64 canvas; regions within, across the edges, outside, tiny and wide."""
    rng = np.random.default_rng(0)
    maps = tuple(
        rng.normal(size=(B, -(-44 // s), -(-64 // s), C)).astype(np.float32) for s in STRIDES
    )
    boxes = oracles.random_boxes(rng, (B, R), side=44)
    boxes[0, 0] = [-9.0, -7.0, 30.0, 20.0]
    boxes[0, 1] = [50.0, 30.0, 90.0, 70.0]
    boxes[0, 2] = [200.0, 200.0, 230.0, 230.0]
    boxes[0, 3] = [10.3, 11.7, 10.9, 12.1]
    boxes[0, 4] = [0.0, 0.0, 64.0, 44.0]
    levels = rng.integers(0, 2, (B, R)).astype(np.int32)
    return maps, boxes, levels


@pytest.fixture(scope="module")
def run():
    static = ("strides", "output_size", "sampling_ratio", "aligned")
    return jax.jit(ops.roi_align, static_argnames=static)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize(("size", "samples"), [(3, 2), (2, 3), (7, 1)])
def test_equals_the_definition(scene, run, aligned, size, samples):
    maps, boxes, levels = scene
    expected = oracles.roi_align(maps, boxes, levels, STRIDES, size, samples, aligned)
    options = {"output_size": size, "sampling_ratio": samples, "aligned": aligned}
    got = run(maps, boxes, levels, strides=STRIDES, **options)
    assert got.shape == (B, R, size, size, C)
    np.testing.assert_allclose(got, expected, atol=1e-5)  # measured: 2e-6
    assert np.abs(expected[0, 2]).max() == 0.0  # the region that is nowhere


def test_jit_equals_eager(scene, run):
    maps, boxes, levels = scene
    np.testing.assert_allclose(
        ops.roi_align(maps, boxes, levels, STRIDES, 3),
        run(maps, boxes, levels, strides=STRIDES, output_size=3),
        atol=1e-5,
    )


def test_a_constant_map_stays_constant_and_a_slope_gives_the_centres(run):
    height, width = 16, 20
    y, x = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    plane = np.stack([np.full_like(y, 5), y, x], axis=-1)[None].astype(np.float32)
    boxes = np.asarray([[[8.0, 4.0, 32.0, 40.0]]], np.float32)  # y 1..10, x 2..8 on the map
    levels = np.zeros((1, 1), np.int32)
    for aligned, shift in ((True, 0.5), (False, 0.0)):
        got = run((plane,), boxes, levels, strides=(4,), output_size=3, aligned=aligned)[0, 0]
        np.testing.assert_allclose(got[..., 0], 5.0, rtol=1e-6)
        np.testing.assert_allclose(got[:, 0, 1], np.array([2.5, 5.5, 8.5]) - shift, rtol=1e-6)
        np.testing.assert_allclose(got[0, :, 2], np.array([3.0, 5.0, 7.0]) - shift, rtol=1e-6)


def loss(run, maps, boxes, levels, seed_weights, aligned=True):
    out = run(maps, boxes, levels, strides=STRIDES, output_size=3, aligned=aligned)
    return jnp.sum(out.astype(jnp.float32) * seed_weights)


@pytest.mark.parametrize("aligned", [True, False])
def test_gradient_is_the_transpose_of_the_definition(scene, run, aligned):
    maps, boxes, levels = scene
    weights = np.random.default_rng(1).normal(size=(B, R, 3, 3, C)).astype(np.float32)
    got = jax.grad(partial(loss, run), argnums=0)(maps, boxes, levels, weights, aligned)
    # The op is linear and treats channels alike: probe the oracle with one pixel at a time.
    for level, plane in enumerate(maps):
        height, width = plane.shape[1:3]
        pixels = np.eye(height * width).reshape(1, height, width, -1)
        probes = [np.zeros((B, *m.shape[1:3], height * width)) for m in maps]
        probes[level] = np.broadcast_to(pixels, (B, *pixels.shape[1:]))
        reads = oracles.roi_align(probes, boxes, levels, STRIDES, 3, 2, aligned)
        expected = np.einsum("brijp,brijc->bpc", reads, weights).reshape(plane.shape)
        np.testing.assert_allclose(got[level], expected, atol=5e-6)  # measured: 1e-6


def test_no_gradient_goes_to_the_boxes(scene, run):
    maps, boxes, levels = scene
    slope = jax.grad(partial(loss, run), argnums=1)(maps, boxes, levels, 1.0)
    np.testing.assert_array_equal(slope, 0.0)


def test_unsound_rows_are_finite_and_leave_the_others_alone(scene, run):
    maps, boxes, levels = scene
    bad = np.asarray(
        [[np.nan] * 4, [np.inf, -np.inf, 1, 1], [9, 9, 2, 2], [0] * 4, [-3e38, -3e38, 3e38, 3e38]],
        np.float32,
    )
    more = np.concatenate([boxes, np.broadcast_to(bad, (B, *bad.shape))], axis=1)
    odd = np.broadcast_to(np.asarray([7, -3, 0, 1, 2**31 - 1], np.int32), (B, 5))
    more_levels = np.concatenate([levels, odd], axis=1)
    got = run(maps, more, more_levels, strides=STRIDES, output_size=3)
    assert np.isfinite(got).all()
    alone = run(maps, boxes, levels, strides=STRIDES, output_size=3)
    np.testing.assert_array_equal(got[:, :R], alone)

    # Rows that no loss looks at give no gradient.
    counts = np.concatenate([np.ones((B, R)), np.zeros((B, 5))], axis=1).astype(np.float32)
    slopes = jax.grad(partial(loss, run))(maps, more, more_levels, counts[..., None, None, None])
    expected = jax.grad(partial(loss, run))(maps, boxes, levels, 1.0)
    for a, b in zip(slopes, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_no_region_at_all(scene, run):
    maps, boxes, levels = scene
    value, slopes = jax.value_and_grad(partial(loss, run))(maps, boxes[:, :0], levels[:, :0], 1.0)
    assert value == 0.0
    for slope in slopes:
        np.testing.assert_array_equal(slope, 0.0)


def test_bfloat16_maps_keep_their_dtype_and_sum_in_float32(scene, run):
    maps, boxes, levels = scene
    half = tuple(jnp.asarray(m, jnp.bfloat16) for m in maps)
    got = run(half, boxes, levels, strides=STRIDES, output_size=3)
    assert got.dtype == jnp.bfloat16
    exact = oracles.roi_align(
        [np.asarray(m, np.float64) for m in half], boxes, levels, STRIDES, 3, 2, True
    )
    # Only the result is rounded: half a unit in the last of 8 bits.
    np.testing.assert_allclose(got.astype(jnp.float32), exact, rtol=2**-8, atol=5e-6)
    slopes = jax.grad(partial(loss, run))(half, boxes, levels, 1.0)
    assert all(s.dtype == jnp.bfloat16 for s in slopes)


def squares(sides):
    sides = np.asarray(sides, np.float32)
    return np.stack([0 * sides, 0 * sides, sides, sides], axis=-1)


@pytest.mark.parametrize("convention", ["mmdet", "torchvision"])
def test_region_levels_double_from_the_canonical_side(convention):
    sides = [0, 1, 56, 111.9, 112, 223.9, 224, 447.9, 448, 5000]
    got = jax.jit(lambda b: ops.region_levels(b, 2, 5, convention=convention))(squares(sides))
    assert got.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 3, 3]


def test_region_levels_of_small_pictures_and_of_unsound_rows():
    small = ops.region_levels(squares([7, 8, 16, 64]), 3, 4, canonical=8.0)
    assert small.tolist() == [0, 0, 1, 1]
    bad = np.asarray([[np.nan] * 4, [5, 5, 1, 1], [0, 0, np.inf, np.inf]], np.float32)
    got = np.asarray(ops.region_levels(bad, 2, 5))
    assert got.min() >= 0
    assert got.max() <= 3


def test_the_conventions_differ_where_their_guards_stand():
    # Six float32 steps under 448 = 8 * 56: 1e-6 beside the ratio of 8 is too little to lift it,
    # 1e-6 beside its logarithm is enough.
    side = np.float32(448)
    for _ in range(6):
        side = np.nextafter(side, np.float32(0))
    box = squares([side])
    assert ops.region_levels(box, 2, 5, convention="mmdet").tolist() == [2]
    assert ops.region_levels(box, 2, 5, convention="torchvision").tolist() == [3]
