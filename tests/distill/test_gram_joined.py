"""The Gram form for accelerators, run on a CPU: it equals the plain form, and its work is fixed.

There, levels of equal shapes are one call, and the two maps are joined for one product.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params

from drkd_jax.distill import gram as gram_file
from drkd_jax.distill.config import PixelRelationConfig
from drkd_jax.distill.gram import gram, over_chunks
from drkd_jax.distill.pairing import LevelPair
from drkd_jax.distill.pixel_relation import PixelRelation
from drkd_jax.ops.platform import tracing_for
from drkd_jax.types import FeatureSpec
from tests.distill.common import relative

SHAPES = (12, 20), (6, 10), (3, 5)
NODES = 4, 4, 5
IMAGES = 4


def evaluate(arithmetic: str, channels: tuple[int, int], form: str, teacher: str, guard: float):
    """Loss, gradients of parameters and both maps, diagnostics and running statistics."""
    strides = 8, 16, 32
    specs = [FeatureSpec((n,) * 3, strides, ("lateral",) * 3) for n in channels]
    config = PixelRelationConfig(
        nodes=NODES,
        form=form,
        arithmetic=arithmetic,
        teacher_modules=teacher,
        teacher_scale=1.0,
        student_scale=1.0,
        gram_guard=guard,
    )
    pairs = tuple(LevelPair(i, i, stride) for i, stride in enumerate(strides))
    term = PixelRelation(config, pairs, *specs, rngs=nnx.Rngs(0))
    graph, params, rest = nnx.split(term, nnx.Param, ...)
    random = np.random.default_rng(0)
    maps = [[random.standard_normal((IMAGES, *at, n)) + 0.5 for at in SHAPES] for n in channels]
    masks = [np.ones((IMAGES, *at), bool) for at in SHAPES]
    for mask in masks:
        mask[1, :, -2:] = mask[3] = False

    def loss(params, s, t):
        module = nnx.merge(graph, params, rest, copy=True)
        groups = 2 if form == "official" else 1
        value, diagnostics = module(tuple(s), tuple(t), tuple(masks), groups=groups)
        return value, (diagnostics, nnx.state(module, nnx.BatchStat))

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(params, *maps)


@pytest.mark.parametrize(
    ("channels", "form", "teacher", "guard"),
    [((8, 8), "official", "trained", 0.01), ((6, 8), "paper", "frozen", 1e9)],
)
def test_levels_together_equal_the_plain_form(channels, form, teacher, guard, monkeypatch):
    """Sides in one call and in two; with a guard that never applies and one that always does."""
    monkeypatch.setattr(gram_file, "ACCELERATOR_CHUNK", 64)  # 4 bands on the finest level
    with jax.enable_x64(True):
        plain = evaluate("plain", channels, form, teacher, guard)
        with tracing_for("gpu"):
            found = evaluate("auto", channels, form, teacher, guard)
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(plain), strict=True)
    # The correlation does not see f's bias: its gradient is rounding.
    worst = max(relative(one, wanted) for one, wanted in pairs if np.abs(wanted).max() > 1e-14)
    assert worst < 1.5e-14  # measured: 1.4e-15


def test_bfloat16_maps_and_the_gradient_of_a_small_difference():
    """Of |s M - t|^2, which is a thirtieth of both: with M in one piece it would be 0.1 off."""
    random = np.random.default_rng(0)
    s, matrix = random.standard_normal((2, 12, 20, 8), np.float32) + 0.5, np.float32(1 / 3)
    matrix = matrix * random.standard_normal((8, 8), np.float32)
    t = s @ matrix + random.standard_normal(s.shape, np.float32) / 30
    s, t = jnp.asarray(s, jnp.bfloat16), jnp.asarray(t, jnp.bfloat16)

    mask = np.ones(s.shape[:3], bool)
    mask[0, 9:] = False

    def loss(s):
        blocks = gram(s, t, mask)
        return (blocks.ss * (matrix @ matrix.T)).sum() - 2 * (blocks.st * matrix).sum()

    with tracing_for("gpu"):
        blocks, found = gram(s, t, mask), jax.grad(loss)(s)
    wide_s, wide_t = (np.where(mask[..., None], np.asarray(x, np.float64), 0) for x in (s, t))
    sides = (wide_s, wide_s), (wide_s, wide_t), (wide_t, wide_t)
    exact = [np.einsum("bhwc,bhwd->bcd", *both) for both in sides]
    assert relative(list(blocks[:3]), exact) < 1e-6  # measured: 2e-7
    assert found.dtype == jnp.bfloat16
    wide = np.asarray(matrix, np.float64)
    # Measured: 1.6e-3, the answer's own rounding.
    assert relative(found, 2 * (wide_s @ wide - wide_t) @ wide.T) < 8e-3


def work(jaxpr) -> list:
    """The primitives of a program, including inner ones, with the trips of its loops."""
    found: list = []
    for one in jaxpr.eqns:
        found.append((one.primitive.name, one.params.get("length")))
        for inner in jaxprs_in_params(one.params):
            found += work(inner)
    return found


@pytest.mark.parametrize("shape", [(200, 336), (101, 167), (13, 21)])
def test_the_number_of_chunks_does_not_grow_with_devices(shape):
    """The batch of eight devices has the program of one: each device gets an eighth of it."""

    def program(images: int) -> list:
        like = jax.ShapeDtypeStruct((images, *shape, 16), jnp.bfloat16)
        mask = jax.ShapeDtypeStruct((images, *shape), jnp.bool_)

        def whole(s, t, mask):
            sums = jax.tree.map(jnp.sum, gram(s, t, mask))
            looped = over_chunks(s.shape, lambda found, first, rows: found + first * rows, 0)
            return sum(sums) + looped

        with tracing_for("gpu"):
            return work(jax.make_jaxpr(jax.grad(whole))(like, like, mask).jaxpr)

    assert program(8) == program(64)
    assert 1 <= gram_file.bands(shape[0] * shape[1]) <= 5
