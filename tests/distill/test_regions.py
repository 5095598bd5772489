"""Regions of several maps together equal those of each map alone."""

import jax
import jax.numpy as jnp
import numpy as np

from drkd_jax.distill.regions import choose_boxes, cut_both
from drkd_jax.ops.roi_align import roi_align
from tests.distill.common import pyramid, targets
from tests.ops.on_devices import plans

GIVEN, STRIDES = targets(), (8, 16)
CHOSEN = choose_boxes(GIVEN.boxes, GIVEN.valid, 3)


def together(sides):
    return cut_both(sides, CHOSEN, STRIDES, 3, GIVEN.sizes)


def alone(sides):
    there = CHOSEN.valid[..., None, None, None]
    levels = jnp.zeros(CHOSEN.valid.shape, jnp.int32)

    def cut(x, stride):
        return roi_align((x,), CHOSEN.boxes, levels, (stride,), 3, 0, False, GIVEN.sizes)

    return tuple(
        tuple(jnp.where(there, cut(x, stride), 0) for x, stride in zip(maps, STRIDES, strict=True))
        for maps in sides
    )


def test_both_sides_maps_are_cut_as_each_alone():
    @jax.jit
    def both(sides):
        found = []
        for way in (together, alone):
            regions, back = jax.vjp(way, sides)
            found.append((regions, back(jax.tree.map(jnp.cos, regions))[0]))
        return found

    ours, wanted = both((pyramid(0, 6).maps, pyramid(1, 10).maps))
    for found, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(found, expected, atol=2e-6)


def test_both_sides_are_cut_in_one_loop_without_rows_that_are_not_valid():
    with plans() as found:
        together((pyramid(0, 6).maps, pyramid(1, 10).maps))
    assert 0 < CHOSEN.valid.sum() < CHOSEN.valid.size
    assert len(found) == 1
    np.testing.assert_array_equal(found[0].there, np.tile(CHOSEN.valid, (1, 2)))


def test_maps_of_other_channels_are_cut_as_well():
    odd = pyramid(0, 6).maps[0], pyramid(1, 10).maps[1]
    sides = pyramid(0, 6).maps, odd
    assert jax.eval_shape(together, sides) == jax.eval_shape(alone, sides)
