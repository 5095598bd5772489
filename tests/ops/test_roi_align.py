import json
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drkd_jax.ops import roi_align as ops
from drkd_jax.ops import roi_plan, roi_tiles, roi_windows
from drkd_jax.ops.platform import tracing_for
from tests import oracles
from tests.ops.on_devices import plans
from tests.training import tiny

STRIDES = (4, 8)
CANVAS = 96, 160
B, R, C = 2, 10, 3
# Bins, samples (0: adaptive), aligned.
FORMS = [(3, 2, True), (7, 1, False), (2, 3, True), (3, 0, False), (7, 0, True)]


@pytest.fixture(scope="module")
def scene():
    """Regions inside, across the edges, outside, tiny, of one tile and of several."""
    rng = np.random.default_rng(0)
    shapes = [(B, *(-(-side // s) for side in CANVAS), C) for s in STRIDES]
    maps = tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)
    boxes = oracles.random_boxes(rng, (B, R), side=90)
    boxes[0, 0] = [-9.0, -7.0, 30.0, 20.0]
    boxes[0, 1] = [131.0, 71.0, 190.0, 120.0]
    boxes[0, 2] = [400.0, 400.0, 430.0, 430.0]
    boxes[0, 3] = [10.3, 11.7, 10.9, 12.1]
    boxes[0, 4] = [0.0, 0.0, 160.0, 96.0]  # 2 x 3 tiles of the finer map
    boxes[0, 5] = [0.0, 40.0, 160.0, 44.0]
    boxes[0, 6] = [56.0, 0.0, 59.0, 96.0]
    boxes[0, 7] = [12.0, 20.0, 40.0, 48.0]  # 7 x 7 pixels of the finer map, not one more
    boxes[0, 8] = [20.0, 20.0, 20.0, 20.0]
    levels = rng.integers(0, 2, (B, R)).astype(np.int32)
    levels[0, 4:8] = 0
    return maps, boxes, levels


@partial(jax.jit, static_argnums=(3, 4, 5, 6))
def run(maps, boxes, levels, strides=STRIDES, size=3, samples=2, aligned=True):
    return ops.roi_align(maps, boxes, levels, strides, size, samples, aligned)


@partial(jax.jit, static_argnums=(4, 5, 6, 7))
def slope(maps, boxes, levels, weights, *how):
    """Gradient of the weighted sum of all bins, with respect to maps and boxes."""

    def loss(maps, boxes):
        return jnp.sum(run(maps, boxes, levels, *how).astype(jnp.float32) * weights)

    return jax.grad(loss, argnums=(0, 1))(maps, boxes)


@pytest.mark.parametrize(("size", "samples", "aligned"), FORMS)
def test_equals_the_definition(scene, size, samples, aligned):
    expected = oracles.roi_align(*scene, STRIDES, size, samples, aligned)
    got = run(*scene, STRIDES, size, samples, aligned)
    assert got.shape == (B, R, size, size, C)
    np.testing.assert_allclose(got, expected, atol=2e-5)  # measured: 8.3e-6
    assert np.abs(expected[0, 2]).max() == 0.0  # the region that is nowhere


def test_jit_equals_eager():
    maps = (np.random.default_rng(3).normal(size=(1, 5, 6, 2)).astype(np.float32),)
    given = maps, np.asarray([[[1.0, 2.0, 19.0, 11.0]]], np.float32), np.zeros((1, 1), np.int32)
    np.testing.assert_allclose(ops.roi_align(*given, (4,), 3), run(*given, (4,)), atol=1e-6)


def test_adaptive_samples_are_as_many_as_a_bin_has_pixels():
    how, many = roi_plan.How(7, 0), np.arange(1, 60, dtype=np.float32)

    @jax.jit
    def samples(length):
        return roi_plan.axis(0 * length, length, 0 * length + 500, how, 0.0).samples

    # Whole numbers of pixels a bin are common and must not be rounded up.
    np.testing.assert_array_equal(samples(7 * many), many)
    np.testing.assert_array_equal(samples(np.nextafter(7 * many, np.float32(0))), many)
    np.testing.assert_array_equal(samples(7 * many * np.float32(1.000001)), many + 1)
    np.testing.assert_array_equal(samples(np.float32([0.0, -5.0])), 0)


def test_a_sample_is_read_up_to_a_whole_cell_outside():
    @jax.jit
    def read(first):
        own = roi_plan.axis(first, first + 1, jnp.full(4, 5.0), how, 0.0)
        return roi_plan.weights(own, jnp.zeros((4, 1), jnp.int32), 5, how)[:, 0]

    how = roi_plan.How(1, 1)
    # The sample lies half a cell behind the start: at -1 and at 5, the map's ends, and past them.
    found = read(np.float32([-1.5, -1.501, 4.5, 4.501]))
    np.testing.assert_array_equal(found, np.eye(5)[[0, 0, 4, 4]] * [[1], [0], [1], [0]])


def test_a_constant_map_stays_constant_and_a_slope_gives_the_centres():
    height, width = 16, 20
    y, x = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    plane = np.stack([np.full_like(y, 5), y, x], axis=-1)[None].astype(np.float32)
    boxes = np.asarray([[[8.0, 4.0, 32.0, 40.0]]], np.float32)  # y 1..10, x 2..8 on the map
    levels = np.zeros((1, 1), np.int32)
    for aligned, shift in ((True, 0.5), (False, 0.0)):
        got = run((plane,), boxes, levels, (4,), 3, 0, aligned)[0, 0]
        np.testing.assert_allclose(got[..., 0], 5.0, rtol=1e-6)
        np.testing.assert_allclose(got[:, 0, 1], np.array([2.5, 5.5, 8.5]) - shift, rtol=1e-6)
        np.testing.assert_allclose(got[0, :, 2], np.array([3.0, 5.0, 7.0]) - shift, rtol=1e-6)


@pytest.mark.parametrize(("samples", "aligned"), [(2, True), (0, False)])
def test_gradient_is_the_transpose_of_the_definition(scene, samples, aligned):
    maps, boxes, levels = scene
    weights = np.random.default_rng(1).normal(size=(B, R, 3, 3, C)).astype(np.float32)
    got, of_boxes = slope(maps, boxes, levels, weights, STRIDES, 3, samples, aligned)
    # The op is linear and treats channels alike: probe the oracle with one pixel at a time.
    for level, plane in enumerate(maps):
        height, width = plane.shape[1:3]
        pixels = np.eye(height * width).reshape(1, height, width, -1)
        probes = [np.zeros((B, *m.shape[1:3], height * width)) for m in maps]
        probes[level] = np.broadcast_to(pixels, (B, *pixels.shape[1:]))
        reads = oracles.roi_align(probes, boxes, levels, STRIDES, 3, samples, aligned)
        expected = np.einsum("brijp,brijc->bpc", reads, weights).reshape(plane.shape)
        np.testing.assert_allclose(got[level], expected, atol=1e-5)  # measured: 2.6e-6
    np.testing.assert_array_equal(of_boxes, 0.0)


@pytest.mark.parametrize("samples", [2, 0])
def test_unsound_rows_are_finite_and_leave_the_others_alone(scene, samples):
    maps, boxes, levels = scene
    bad = np.asarray(
        [[np.nan] * 4, [np.inf, -np.inf, 1, 1], [9, 9, 2, 2], [0] * 4, [-3e38, -3e38, 3e38, 3e38]],
        np.float32,
    )
    more = np.concatenate([boxes, np.broadcast_to(bad, (B, *bad.shape))], axis=1)
    odd = np.broadcast_to(np.asarray([7, -3, 0, 1, 2**31 - 1], np.int32), (B, 5))
    more_levels = np.concatenate([levels, odd], axis=1)
    got = run(maps, more, more_levels, STRIDES, 3, samples)
    assert np.isfinite(got).all()
    np.testing.assert_array_equal(got[:, :R], run(maps, boxes, levels, STRIDES, 3, samples))

    # Rows that no loss uses have no gradient.
    counts = np.ones((B, R + 5, 1, 1, 1), np.float32)
    counts[:, R:] = 0
    found, _ = slope(maps, more, more_levels, counts, STRIDES, 3, samples, True)
    expected, _ = slope(maps, boxes, levels, counts[:, :R], STRIDES, 3, samples, True)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_no_region_at_all(scene):
    maps, boxes, levels = scene
    assert run(maps, boxes[:, :0], levels[:, :0]).shape == (B, 0, 3, 3, C)
    nothing = np.zeros((B, 0, 3, 3, C), np.float32)
    found, _ = slope(maps, boxes[:, :0], levels[:, :0], nothing, STRIDES, 3, 2, True)
    for plane in found:
        np.testing.assert_array_equal(plane, 0.0)


def test_vmap_over_batches_of_their_own_length(scene):
    maps, boxes, levels = scene
    fewer = boxes.copy()
    fewer[:, 1:] = 0.0
    both = np.stack([boxes, fewer])
    weights = np.ones((B, R, 3, 3, C), np.float32)
    batched, slopes = jax.jit(
        jax.vmap(
            lambda b: (run(maps, b, levels), slope(maps, b, levels, weights, STRIDES, 3, 2, True))
        )
    )(both)
    for i, alone in enumerate(both):
        np.testing.assert_allclose(batched[i], run(maps, alone, levels), atol=1e-6)
        expected, _ = slope(maps, alone, levels, weights, STRIDES, 3, 2, True)
        for a, b in zip(slopes[0], expected, strict=True):
            np.testing.assert_allclose(a[i], b, atol=1e-5)


def test_bfloat16_maps_keep_their_dtype_and_sum_in_float32(scene):
    maps, boxes, levels = scene
    half = tuple(jnp.asarray(m, jnp.bfloat16) for m in maps)
    wide = tuple(m.astype(jnp.float32) for m in half)
    weights = np.random.default_rng(1).normal(size=(B, R, 3, 3, C)).astype(np.float32)
    weights = np.asarray(jnp.asarray(weights, jnp.bfloat16), np.float32)
    got = run(half, boxes, levels), slope(half, boxes, levels, weights, STRIDES, 3, 2, True)[0]
    exact = run(wide, boxes, levels), slope(wide, boxes, levels, weights, STRIDES, 3, 2, True)[0]
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(exact), strict=True):
        assert a.dtype == jnp.bfloat16
        # Only the result is rounded: 2^-8 at most, measured 3.8e-3 (3.9e-3).
        np.testing.assert_array_equal(a, b.astype(jnp.bfloat16))
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=2**-8)


def test_forms_of_a_gpu_equal_those_of_a_cpu(scene):
    """Some regions fit into the windows, the others use the tiles."""
    maps, boxes, levels = scene
    size = 7
    maps = tuple(jnp.asarray(m, jnp.bfloat16) for m in maps)
    weights = np.random.default_rng(1).normal(size=(B, R, size, size, C)).astype(np.float32)
    valid = np.ones((B, R), bool)
    valid[0, 2:5] = valid[1, 7] = False

    def read(where, maps):
        with tracing_for(where):
            return ops.roi_align(maps, boxes, levels, STRIDES, size, 0, valid=valid)

    @partial(jax.jit, static_argnums=0)
    def both(where, maps):
        wide = tuple(m.astype(jnp.float32) for m in maps)
        found, back = jax.vjp(partial(read, where), wide)
        return found, back(weights)[0], read(where, maps)

    # Small rounds, so that there are several of them.
    with (
        mock.patch.multiple(roi_tiles, ROUND=6, TILE=(5, 4)),
        mock.patch.object(roi_windows, "WINDOW", 3),
        mock.patch.object(roi_windows, "MOST", 9000),  # a few regions at a time
    ):
        cpu, gpu = both("cpu", maps), both("gpu", maps)
        with plans() as plan:
            read("gpu", maps)
        assert 0 < roi_windows.fits(plan[0], roi_plan.How(size, 0))[valid].sum() < valid.sum()
    for found, expected in zip(jax.tree.leaves(gpu[:2]), jax.tree.leaves(cpu[:2]), strict=True):
        np.testing.assert_allclose(found, expected, atol=5e-6)
        assert np.abs(expected).max() > 1
    # In bfloat16 only the result is rounded.
    np.testing.assert_array_equal(gpu[2], gpu[0].astype(jnp.bfloat16))
    assert not np.asarray(gpu[0])[~valid].any()
    assert not np.asarray(cpu[0])[~valid].any()


@pytest.mark.parametrize("where", ["cpu", "gpu"])
def test_regions_that_are_not_valid_take_no_tile(scene, where):
    maps, boxes, levels = scene
    many = np.tile(boxes, (1, 200, 1)), np.tile(levels, (1, 200))
    valid = np.zeros(many[1].shape, bool)

    def rounds(valid):
        with tracing_for(where), plans() as found:
            ops.roi_align(maps, *many, STRIDES, 3, 2, valid=valid)
            form = roi_tiles._form(len(boxes), roi_plan.How(3, 2), maps[0].shape[-1])
            return int(roi_tiles.num_rounds(found[0], form))

    assert rounds(valid) == 0
    valid[:, 1990] = True
    assert rounds(valid) == 1
    assert rounds(None) > 3


def test_a_round_stays_within_what_is_quick_to_sum(monkeypatch, scene):
    """A fused sum of 2^31 terms or more takes 60 times as long on a GPU."""
    maps, boxes, levels = scene
    many = np.tile(boxes, (1, 200, 1)), np.tile(levels, (1, 200))

    def rounds():
        with tracing_for("gpu"), plans() as found:
            ops.roi_align(maps, *many, STRIDES, 7, 2)
            form = roi_tiles._form(len(boxes), roi_plan.How(7, 2), maps[0].shape[-1])
            return int(roi_tiles.num_rounds(found[0], form)), form.per_round

    before, most = rounds()
    assert most == roi_tiles.ROUND
    # As if the batch had so many more images.
    monkeypatch.setattr(roi_tiles, "MOST", len(boxes) * 7 * 8 * 8 * maps[0].shape[-1] * 64)
    after, fewer = rounds()
    assert fewer == 64
    assert after > before


def test_rounds_do_not_grow_with_devices():
    process = tiny.python("-m", "tests.ops.on_devices", devices=4)
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    found = json.loads(out.splitlines()[-1])
    assert found["devices"] == 4
    assert found["rounds"] == found["alone"]
    assert found["rounds"] > 1
    assert max(found["off"]) < 1e-6
    assert found["gathered"] < found["map"]  # bytes
    # NMS and RoIAlign's rounds asked all devices whether to continue.
    assert found["left to itself"] >= 2
    assert found["by device"] == 0


def squares(sides):
    sides = np.asarray(sides, np.float32)
    return np.stack([0 * sides, 0 * sides, sides, sides], axis=-1)


@pytest.mark.parametrize("convention", ["mmdet", "torchvision"])
def test_region_levels_double_from_the_canonical_side(convention):
    sides = [0, 1, 56, 111.9, 112, 223.9, 224, 447.9, 448, 5000]
    got = jax.jit(lambda b: ops.region_levels(b, 2, 5, convention=convention))(squares(sides))
    assert got.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 3, 3]


def test_region_levels_of_small_images_and_of_unsound_rows():
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
