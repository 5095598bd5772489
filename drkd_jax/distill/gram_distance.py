"""Computes the pixel relation from the Gram matrix of the features alone.

The graph unit's ReLU acts only on the small node matrix. For a given image, the unit with its
normalisation, residual and adaptation is therefore one affine map of the channels:

    phi_t(t) - f(phi_s(s)) = t Q_t + s Q_s + q

and every sum over pixels (nodes, batch statistics, the squared distance) is a small product with
the Gram matrix of [s; t; 1].

This is exact, but the distance is a difference of large numbers: if e is the relative distance of
the two embeddings, the loss has a relative error of about eps / e^2 and its gradient of eps / e.
`guard` corrects the value.

Letters: B images, h w a map, Cs Ct student and teacher channels, C either, N groups, S states,
M nodes, L levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float

from drkd_jax.distill.gram import Gram, gram, over_chunks, rows_of
from drkd_jax.distill.gram_embedding import Affine, Sums, Unit, embedding, numbers
from drkd_jax.distill.graph_unit import GraphUnit, Moments, moved
from drkd_jax.distill.layers import Linear, accumulator, product, safe_ratio
from drkd_jax.distill.together import Answers, together
from drkd_jax.types import Array

# Added to a channel's variance, since a channel that is constant in an image carries no
# information there. The teacher's maps have a standard deviation of 1; this is a hundredth of it.
FLAT = 1e-4
# Assumed rounding error of a sum over an image's pixels, in units in the last place.
ROUNDING = 32


class Distance(NamedTuple):
    """The sums of one level, over valid pixels and channels, per image."""

    squares: Float[Array, "B"]  # of z(phi_t) - z(f(phi_s))
    energy: Float[Array, "B"]  # of phi_t
    spread: Float[Array, "B"]  # of phi_t about its mean over the pixels
    input_energy: Float[Array, "B"]  # of t
    input_spread: Float[Array, "B"]  # of t about its mean over the pixels
    count: Float[Array, "B"]  # valid pixels


class Level(NamedTuple):
    """The units, maps and valid pixels of one level."""

    student: GraphUnit
    teacher: GraphUnit
    adaptation: Linear
    s: Float[Array, "B h w Cs"]
    t: Float[Array, "B h w Ct"]
    mask: Bool[Array, "B h w"]


class _Answer(NamedTuple):
    distance: Distance
    against: Float[Array, "B"]  # squares of z(phi_t), which `squares` are compared with
    of_s: Affine
    of_t: Affine
    moments_s: Moments
    moments_t: Moments


def _level(
    student: Unit,
    teacher: Unit,
    adaptation: Affine,
    blocks: Gram,
    count: Float[Array, "B"],
    *,
    compare: str,
    normalize: bool,
    groups: int,
    train: bool,
    side_by_side: bool,
) -> _Answer:
    """The distance of one level from its Gram matrix."""
    mean_s, mean_t = (safe_ratio(total, count[:, None]) for total in (blocks.s, blocks.t))
    of_s = Sums(blocks.ss - blocks.s[:, :, None] * mean_s[:, None], mean_s, count)
    of_t = Sums(blocks.tt - blocks.t[:, :, None] * mean_t[:, None], mean_t, count)
    inner_st = blocks.st - blocks.s[:, :, None] * mean_t[:, None]
    embed = partial(embedding, normalize=normalize, groups=groups, train=train)
    if side_by_side:
        phi_s, phi_t = together(embed, [(student, of_s), (teacher, of_t)])
    else:
        phi_s, phi_t = embed(student, of_s), embed(teacher, of_t)
    # f after phi_s: its kernel, and covariance times kernel.
    channels = mean_s.shape[1]
    pair = jnp.concatenate([phi_s.affine.kernel, phi_s.spread], 1)
    adapted = product("bcd,de->bce", pair, adaptation.kernel)
    kernel, student_part = adapted[:, :channels], adapted[:, channels:]
    cross_part = product("bcd,bde->bce", inner_st, phi_t.affine.kernel)
    # Squares about the mean and squares of the mean separately: better conditioned than together.
    within_t = (phi_t.spread * phi_t.affine.kernel).sum(1)
    means = jnp.stack([phi_s.mean, phi_s.affine.bias])
    mean, bias = product("kbc,cd->kbd", means, adaptation.kernel) + adaptation.bias
    spread = within_t.sum(1)
    energy = spread + count * (phi_t.mean**2).sum(1)
    affine_s, affine_t = Affine(kernel, bias), phi_t.affine
    if compare == "correlation":
        within_s = _significant((student_part * kernel).sum(1), mean_s, kernel, count)
        within_t = _significant(within_t, mean_t, affine_t.kernel, count)
        gain_s, gain_t = (_gain(within, count) for within in (within_s, within_t))
        both = (cross_part * kernel).sum(1) * gain_s * gain_t
        # Where the teacher's channel is constant, what remains is rounding error.
        both = jnp.where(within_t > 0, both, 0)
        own_s, own_t = within_s * gain_s**2, within_t * gain_t**2
        squares, against = (own_t + own_s - 2 * both).sum(1), own_t.sum(1)
        affine_s = Affine(kernel * gain_s[:, None], (bias - mean) * gain_s)
        affine_t = Affine(affine_t.kernel * gain_t[:, None], (affine_t.bias - phi_t.mean) * gain_t)
    else:
        inner = spread + ((student_part - 2 * cross_part) * kernel).sum((1, 2))
        squares, against = inner + count * ((phi_t.mean - mean) ** 2).sum(1), energy
    trace, inner_trace = (
        jnp.trace(square, axis1=1, axis2=2) for square in (blocks.tt, of_t.covariance)
    )
    return _Answer(
        Distance(squares, energy, spread, trace, inner_trace, count),
        against,
        Affine(-affine_s.kernel, -affine_s.bias),
        affine_t,
        phi_s.moments,
        phi_t.moments,
    )


def _gain(within: Float[Array, "B C"], count: Float[Array, "B"]) -> Float[Array, "B C"]:
    """The factor that gives a channel a variance of 1 in its image.

    Args:
        within: sum of squares about the image's mean.
        count: pixels of each image.
    """
    return jax.lax.rsqrt(safe_ratio(within, count[:, None]) + FLAT)


def _significant(
    within: Float[Array, "B D"],
    mean: Float[Array, "B C"],
    kernel: Float[Array, "B C D"],
    count: Float[Array, "B"],
) -> Float[Array, "B D"]:
    """Sums of squares about the mean, set to 0 where they are only rounding error.

    For a constant channel, subtracting the mean's squares leaves a few eps of them, of either
    sign, which would not be negligible beside `FLAT`.
    """
    taken = count[:, None] * (jnp.abs(mean)[:, :, None] * jnp.abs(kernel)).sum(1) ** 2
    rounding = ROUNDING * jnp.finfo(within.dtype).eps * jax.lax.stop_gradient(taken)
    return jnp.where(within > rounding, within, 0)


def _residual_squares(
    s: Float[Array, "B h w Cs"],
    t: Float[Array, "B h w Ct"],
    mask: Bool[Array, "B h w"],
    of_s: Affine,
    of_t: Affine,
) -> Float[Array, "B"]:
    """Sum of squares of t Q_t + s Q_s + q, pixel by pixel: slower, but without cancellation."""
    wide = accumulator(s, t)

    def body(sums: jax.Array, first: jax.Array | int, number: int) -> jax.Array:
        rest = product("bpc,bcd->bpd", rows_of(t, first, number).astype(wide), of_t.kernel)
        rest = rest + product("bpc,bcd->bpd", rows_of(s, first, number).astype(wide), of_s.kernel)
        rest = rest + (of_s.bias + of_t.bias)[:, None]
        inside = rows_of(mask, first, number)[..., None]
        return sums + jnp.where(inside, rest * rest, 0).sum((1, 2))

    return over_chunks(s.shape, body, jnp.zeros(s.shape[0], wide))


def gram_distances(
    levels: Sequence[Level], *, compare: str, groups: int, train: bool, guard: float | int
) -> list[Distance]:
    """The distances of several levels from Gram matrices; equal to the plain form's.

    Args:
        levels: units (whose running statistics move in training), f, maps and pixels that count.
        compare: as in `PixelRelationConfig`.
        groups: how many groups the batch is split into; each has its own statistics.
        train: as in `GraphUnit`.
        guard: where a level's squares are less than this share of the teacher's own, their sum is
            recomputed pixel by pixel (only the value: the gradient loses far less precision).
    """
    rows = []
    for level in levels:
        blocks = gram(level.s, level.t, level.mask)
        wide = blocks.ss.dtype
        units = numbers(level.student, wide), numbers(level.teacher, wide)
        adapt = Affine(
            *(x[...].astype(wide) for x in (level.adaptation.kernel, level.adaptation.bias))
        )
        rows.append((*units, adapt, blocks, level.mask.sum((1, 2)).astype(wide)))
    # An untrained teacher needs no gradient; batched with the student it would get one.
    trained = all(isinstance(level.teacher.mix, nnx.Param) for level in levels)
    normalize = levels[0].student.normalize
    form = partial(_level, compare=compare, normalize=normalize, groups=groups, train=train)
    answers = together(partial(form, side_by_side=trained), rows)
    if train:
        _remember([level.student for level in levels], [found.moments_s for found in answers])
        _remember([level.teacher for level in levels], [found.moments_t for found in answers])
    return _guarded(levels, answers, guard) if guard > 0 else [found.distance for found in answers]


def _remember(units: Sequence[GraphUnit], moments: Sequence[Moments]) -> None:
    """Updates the running statistics of several units."""
    norms = [unit.norm for unit in units]
    rows = [
        (norm.mean[...], norm.variance[...], fresh)
        for norm, fresh in zip(norms, moments, strict=True)
    ]
    for norm, after in zip(norms, together(moved, rows), strict=True):
        norm.mean[...], norm.variance[...] = after


def _guarded(
    levels: Sequence[Level], answers: Answers[_Answer], guard: float | int
) -> list[Distance]:
    """The distances, with squares recomputed where too small to be precise.

    There is a single branch for all levels, since a GPU waits for the host at every branch.
    """
    distances = [found.distance for found in answers]
    squares = jax.lax.stop_gradient(jnp.stack([one.squares for one in distances]))
    against = jax.lax.stop_gradient(jnp.stack([found.against for found in answers]))
    small = squares.sum(1) < guard * against.sum(1)
    held, maps = answers.still(), [jax.lax.stop_gradient(level[3:]) for level in levels]

    def again() -> jax.Array:
        exact = [
            _residual_squares(*each, found.of_s, found.of_t)
            for each, found in zip(maps, held, strict=True)
        ]
        return jnp.where(small[:, None], jnp.stack(exact), squares)

    right = jax.lax.cond(small.any(), again, lambda: squares)
    return [
        one._replace(squares=one.squares + jax.lax.stop_gradient(exact - one.squares))
        for one, exact in zip(distances, right, strict=True)
    ]
