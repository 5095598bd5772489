"""Regions of several maps in one go are those of each map alone."""

import jax
import jax.numpy as jnp
import numpy as np

from drkd_jax.distill.regions import choose_boxes, cut
from drkd_jax.ops.roi_align_adaptive import roi_align_adaptive
from tests.distill.common import pyramid, targets

GIVEN, STRIDES = targets(), (8, 16)
CHOSEN = choose_boxes(GIVEN.boxes, GIVEN.valid, 3)


def together(maps):
    return cut(maps, CHOSEN, STRIDES, 3, GIVEN.sizes)


def alone(maps):
    return tuple(
        roi_align_adaptive(x, CHOSEN.boxes, stride, 3, sizes=GIVEN.sizes)
        for x, stride in zip(maps, STRIDES, strict=True)
    )


def test_maps_are_cut_as_each_alone():
    @jax.jit
    def both(maps):
        found = []
        for way in (together, alone):
            regions, back = jax.vjp(way, maps)
            found.append((regions, back(jax.tree.map(jnp.cos, regions))[0]))
        return found

    ours, wanted = both(pyramid(0, 6).maps)
    for found, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(found, expected, atol=2e-6)


def test_maps_of_other_channels_are_cut_as_well():
    maps = pyramid(0, 6).maps[0], pyramid(1, 10).maps[1]
    assert jax.eval_shape(together, maps) == jax.eval_shape(alone, maps)
