"""The pixel relation from the Gram matrix of the features alone.

The unit's ReLU acts on the small node matrix only, so for a given picture unit, normalisation,
residual and adaptation together are one affine map of the channels:

    phi_t(t) - f(phi_s(s)) = t Q_t + s Q_s + q

and every sum over pixels (nodes, batch statistics, the squared distance) is a small product with
the Gram matrix of [s; t; 1].

Exact, but the distance is a difference of large numbers: with e the relative distance of the two
embeddings, the loss loses about eps / e^2 and its gradient eps / e. `guard` mends the value.

Letters: B pictures, h w a map, Cs Ct student and teacher channels, C either, N groups.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from drkd_jax.distill.distance import Distance
from drkd_jax.distill.gram import gram, over_chunks, rows_of
from drkd_jax.distill.graph_unit import GraphUnit, Moments, grouped
from drkd_jax.distill.layers import Linear, accumulator, product, safe_ratio
from drkd_jax.types import Array


class Affine(NamedTuple):
    """x -> x kernel + bias, one a picture."""

    kernel: Float[Array, "B C D"]
    bias: Float[Array, "B D"]


def unit_affine(
    unit: GraphUnit,
    square: Float[Array, "B C C"],
    total: Float[Array, "B C"],
    count: Float[Array, "B"],
    *,
    groups: int,
    train: bool,
) -> Affine:
    """The graph unit as an affine map, from its map's own Gram block.

    Args:
        unit: the graph unit.
        square: sum of x x^T over the pixels.
        total: sum of x.
        count: number of pixels.
        groups: the batch is so many groups, each with statistics of its own.
        train: batch statistics, which move the running ones; else the running ones.
    """
    wide = square.dtype
    to_states, states_bias = unit.state.kernel[...].astype(wide), unit.state.bias[...].astype(wide)
    to_nodes = unit.projection.kernel[...].astype(wide)
    nodes_bias = unit.projection.bias[...].astype(wide)
    # V = S^T B with S = x W_s + b_s and B = x W_b + b_b, summed over pixels.
    way = product("bcd,dm->bcm", square, to_nodes) + total[:, :, None] * nodes_bias
    rest = product("bc,cm->bm", total, to_nodes) + count[:, None] * nodes_bias
    nodes = product("cs,bcm->bsm", to_states, way) + states_bias[:, None] * rest[:, None]
    # B V'^T W_e: back over the projection.
    answer = product("bsm,sc->bmc", unit.reason(nodes, count), unit.extend.kernel[...].astype(wide))
    kernel = product("cm,bmd->bcd", to_nodes, answer)
    bias = product("m,bmd->bd", nodes_bias, answer)
    if train:
        moments = _branch_moments(kernel, bias, square, total, count, groups)
        unit.norm.remember(moments)
    else:
        moments = unit.norm.running()
    gain, shift = unit.norm.affine(moments)
    each = square.shape[0] // gain.shape[0]
    gain, shift = jnp.repeat(gain, each, axis=0), jnp.repeat(shift, each, axis=0)
    identity = jnp.eye(square.shape[1], dtype=wide)
    return Affine(identity + kernel * gain[:, None].astype(wide), bias * gain + shift)


def _covariance(
    square: Float[Array, "B C C"], total: Float[Array, "B C"], count: Float[Array, "B"]
) -> Float[Array, "B C C"]:
    """Sum of products about the mean."""
    return square - total[:, :, None] * safe_ratio(total, count[:, None])[:, None]


def _branch_moments(
    kernel: Float[Array, "B C C"],
    bias: Float[Array, "B C"],
    square: Float[Array, "B C C"],
    total: Float[Array, "B C"],
    count: Float[Array, "B"],
    groups: int,
) -> Moments:
    """Mean and variance of x kernel + bias over the pixels of each group."""
    covariance = _covariance(square, total, count)
    within = (product("bcd,bde->bce", covariance, kernel) * kernel).sum(1)
    mean = product("bc,bcd->bd", safe_ratio(total, count[:, None]), kernel) + bias
    counts, means = grouped(count, groups)[..., None], grouped(mean, groups)
    number = counts.sum(1)
    middle = safe_ratio((counts * means).sum(1), number)
    between = (counts * (means - middle[:, None]) ** 2).sum(1)
    # Within is a sum of squares: below 0 it is rounding, and the root would not forgive it.
    inner = jnp.maximum(grouped(within, groups).sum(1), 0)
    return Moments(middle, safe_ratio(inner + between, number), number[:, 0])


def _residual_squares(
    s: Float[Array, "B h w Cs"],
    t: Float[Array, "B h w Ct"],
    mask: Bool[Array, "B h w"],
    of_s: Affine,
    of_t: Affine,
) -> Float[Array, "B"]:
    """Sum of squares of t Q_t + s Q_s + q, pixel by pixel: more work, and no digits lost."""
    wide = accumulator(s, t)

    def body(sums: jax.Array, first: jax.Array | int, number: int) -> jax.Array:
        rest = product("bpc,bcd->bpd", rows_of(t, first, number).astype(wide), of_t.kernel)
        rest = rest + product("bpc,bcd->bpd", rows_of(s, first, number).astype(wide), of_s.kernel)
        rest = rest + (of_s.bias + of_t.bias)[:, None]
        inside = rows_of(mask, first, number)[..., None]
        return sums + jnp.where(inside, rest * rest, 0).sum((1, 2))

    return over_chunks(s.shape, body, jnp.zeros(s.shape[0], wide))


def gram_distance(
    student: GraphUnit,
    teacher: GraphUnit,
    adaptation: Linear,
    s: Float[Array, "B h w Cs"],
    t: Float[Array, "B h w Ct"],
    mask: Bool[Array, "B h w"],
    *,
    groups: int,
    train: bool,
    guard: float | int,
) -> Distance:
    """The distance of one level from Gram matrices: same numbers as the plain form.

    Args:
        student: the student's graph unit.
        teacher: the teacher's.
        adaptation: f.
        s: the student's map.
        t: the teacher's map.
        mask: pixels that count.
        groups: as in `GraphUnit`.
        train: as in `GraphUnit`.
        guard: where the squares come to less than this share of the teacher embedding's, their
            sum is taken again pixel by pixel (the value only: the gradient loses far less).
    """
    blocks = gram(s, t, mask)
    count = mask.sum((1, 2)).astype(blocks.ss.dtype)
    phi_s = unit_affine(student, blocks.ss, blocks.s, count, groups=groups, train=train)
    phi_t = unit_affine(teacher, blocks.tt, blocks.t, count, groups=groups, train=train)
    to_teacher = adaptation.kernel[...].astype(blocks.ss.dtype)
    of_t = phi_t
    of_s = Affine(
        -product("bcd,de->bce", phi_s.kernel, to_teacher),
        -product("bd,de->be", phi_s.bias, to_teacher) - adaptation.bias[...],
    )
    # Squares about the mean plus the mean's own: better conditioned than both at once.
    per_s, per_t = (safe_ratio(total, count[:, None]) for total in (blocks.s, blocks.t))
    inner_ss = _covariance(blocks.ss, blocks.s, count)
    inner_tt = _covariance(blocks.tt, blocks.t, count)
    inner_st = blocks.st - blocks.s[:, :, None] * per_t[:, None]
    teacher_part = product("bcd,bde->bce", inner_tt, of_t.kernel)
    student_part = product("bcd,bde->bce", inner_ss, of_s.kernel)
    cross_part = product("bcd,bde->bce", inner_st, of_t.kernel)
    spread = (teacher_part * of_t.kernel).sum((1, 2))
    inner = spread + ((student_part + 2 * cross_part) * of_s.kernel).sum((1, 2))
    mean_t = product("bc,bcd->bd", per_t, of_t.kernel) + of_t.bias
    mean_s = product("bc,bcd->bd", per_s, of_s.kernel) + of_s.bias
    squares = inner + count * ((mean_t + mean_s) ** 2).sum(1)
    energy = spread + count * (mean_t**2).sum(1)
    if guard > 0:
        held = jax.lax.stop_gradient((s, t, mask, of_s, of_t, squares, energy))
        exact = jax.lax.cond(
            held[5].sum() < guard * held[6].sum(),
            lambda: _residual_squares(*held[:5]),
            lambda: held[5],
        )
        squares = squares + jax.lax.stop_gradient(exact - squares)
    trace = jnp.trace(blocks.tt, axis1=1, axis2=2)
    return Distance(squares, energy, spread, trace, jnp.trace(inner_tt, axis1=1, axis2=2), count)
