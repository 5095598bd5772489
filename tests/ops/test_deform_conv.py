"""Deformable convolution against loops, against the plain one, and its laws."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from drkd_jax.models.resnet import DeformConv
from drkd_jax.ops.deform_conv import deform_conv
from tests import oracles_deform

RNG = np.random.default_rng(0)


def normal(*shape, scale=1.0):
    return (RNG.normal(size=shape) * scale).astype(np.float32)


def case(groups, stride, dilation, modulated, size=(7, 6)):
    p, q = ((n + 2 * dilation - dilation * 2 - 1) // stride + 1 for n in size)
    offsets = normal(2, p, q, 18, scale=2.5)  # some far outside, some on the border
    offsets[0, 0, 0] = np.tile([-1.0, 0.0], 9)
    offsets[0, 1, 1] = np.tile([0.0, 1e6], 9)
    modulation = RNG.uniform(size=(2, p, q, 9)).astype(np.float32) if modulated else None
    x, kernel = normal(2, *size, 8), normal(3, 3, 8 // groups, 12)
    return (x, kernel, offsets, modulation), {
        "stride": stride,
        "padding": dilation,
        "dilation": dilation,
    }


@pytest.mark.parametrize(
    ("groups", "stride", "dilation", "modulated"),
    [(1, 1, 1, False), (4, 2, 1, True), (2, 1, 2, True), (4, 2, 2, False)],
)
def test_it_is_its_loops(groups, stride, dilation, modulated):
    arrays, options = case(groups, stride, dilation, modulated)
    wanted = oracles_deform.deform_conv(*arrays, **options)
    got = deform_conv(*arrays, **options)
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    narrow = deform_conv(arrays[0].astype(jnp.bfloat16), *arrays[1:], **options)
    assert narrow.dtype == jnp.bfloat16
    np.testing.assert_allclose(narrow.astype(np.float32), wanted, atol=0.15)


@pytest.mark.parametrize(("groups", "stride"), [(1, 1), (4, 2)])
def test_without_offsets_it_is_the_plain_convolution(groups, stride):
    (x, kernel, offsets, _), options = case(groups, stride, 1, False)
    wanted = jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    np.testing.assert_allclose(deform_conv(x, kernel, 0 * offsets, **options), wanted, atol=2e-5)


def test_a_whole_row_of_offset_reads_the_next_row():
    (x, kernel, offsets, _), _ = case(1, 1, 1, False)
    down = np.tile([1.0, 0.0], 9).astype(np.float32) + 0 * offsets  # y stands first
    moved = np.concatenate([x[:, 1:], 0 * x[:, :1]], axis=1)
    inner = np.s_[:, 1:-1]  # the rows whose taps all read the map
    np.testing.assert_allclose(
        deform_conv(x, kernel, down)[inner], deform_conv(moved, kernel, 0 * down)[inner], atol=1e-5
    )


def test_gradients_are_those_of_differences():
    arrays, options = case(2, 2, 1, True, size=(5, 4))
    # Away from whole pixels, where the bilinear weights have a corner.
    offsets = np.floor(arrays[2] % 3) + 0.2 + 0.6 * RNG.uniform(size=arrays[2].shape)
    arrays = arrays[0], arrays[1], offsets.astype(np.float32), arrays[3]
    out = deform_conv(*arrays, **options)
    cotangent = normal(*out.shape)

    def loss(*values):
        return jnp.vdot(deform_conv(*values, **options), cotangent)

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(*arrays)
    for i, gradient in enumerate(gradients):
        step = normal(*arrays[i].shape)
        ends = []
        for sign in (1, -1):
            moved = [np.asarray(a, np.float64) for a in arrays]
            moved[i] = moved[i] + sign * 1e-5 * step
            ends.append(np.vdot(oracles_deform.deform_conv(*moved, **options), cotangent))
        wanted = (ends[0] - ends[1]) / 2e-5
        assert np.vdot(gradient, step) == pytest.approx(wanted, rel=1e-4), i


def test_garbage_offsets_read_nothing_and_give_no_gradient():
    (x, kernel, offsets, _), options = case(1, 1, 1, False)
    wild = offsets.copy()
    wild[0] = 1e30
    wild[1] = -np.inf

    def total(offsets):
        return deform_conv(x, kernel, offsets, **options).sum()

    value, gradient = jax.value_and_grad(total)(wild)
    assert value == 0
    assert not np.any(np.asarray(gradient))


def test_a_reading_a_whole_pixel_outside_has_no_gradient():
    """As for all samples of a new layer in the padding."""
    (x, kernel, offsets, _), options = case(1, 1, 1, False)
    slope = jax.jit(jax.grad(lambda moves: deform_conv(x, kernel, moves, **options).sum()))
    by_tap = np.asarray(slope(0 * offsets)).reshape(2, 7, 6, 3, 3, 2)
    assert not by_tap[:, [0, -1], :, [0, 2]].any()  # rows -1 and 7
    assert not by_tap[:, :, [0, -1], :, [0, 2]].any()
    assert by_tap[:, 1:-1, 1:-1].all()


def test_gradient_of_a_narrow_map_is_summed_wide():
    # All 400 taps read one pixel: summed in bfloat16, the gradient stops growing at 256.
    offsets = -np.stack(np.meshgrid(np.arange(20), np.arange(20), indexing="ij"), axis=-1)

    def total(x):
        kernel = jnp.ones((20, 20, 1, 1), jnp.bfloat16)
        moves = (offsets + 10).reshape(1, 1, 1, 800).astype(np.float32)
        moves = jnp.broadcast_to(moves, (1, 2, 2, 800))
        return deform_conv(x, kernel, moves, padding=10)[0, 0, 0, 0]

    x = jnp.ones((1, 1, 1, 1), jnp.bfloat16)
    assert float(jax.grad(total)(x)[0, 0, 0, 0]) == 400


def test_jit_and_vmap_change_nothing():
    arrays, options = case(2, 1, 1, True)
    eager = deform_conv(*arrays, **options)
    np.testing.assert_allclose(
        jax.jit(lambda *a: deform_conv(*a, **options))(*arrays), eager, atol=1e-5
    )
    x, kernel, offsets, modulation = arrays
    mapped = jax.vmap(lambda a, b, c: deform_conv(a[None], kernel, b[None], c[None], **options)[0])
    np.testing.assert_allclose(mapped(x, offsets, modulation), eager, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"offsets": normal(2, 7, 6, 9)}, "offsets of shape"),
        ({"modulation": normal(2, 7, 6, 18)}, "modulation of shape"),
        ({"kernel": normal(3, 3, 3, 12)}, "does not divide"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(changes, said):
    (x, kernel, offsets, modulation), _ = case(1, 1, 1, True)
    values = {"kernel": kernel, "offsets": offsets, "modulation": modulation, **changes}
    with pytest.raises(ValueError, match=said):
        deform_conv(x, **values)


@pytest.mark.parametrize(("modulated", "outputs"), [(False, 18), (True, 27)])
def test_a_fresh_layer_is_the_plain_convolution(modulated, outputs):
    layer = DeformConv(
        8, 12, rngs=nnx.Rngs(0), dtype=jnp.dtype("float32"), stride=2, groups=4, modulated=modulated
    )
    assert layer.offset.kernel.shape == (3, 3, 8, outputs)
    x = normal(1, 6, 5, 8)
    wanted = jax.lax.conv_general_dilated(
        x,
        layer.kernel[...],
        (2, 2),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=4,
    )
    factor = 0.5 if modulated else 1.0
    np.testing.assert_allclose(layer(jnp.asarray(x)), factor * wanted, atol=1e-5)
