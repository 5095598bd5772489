"""L_PR: the student's pixels should relate to each other as the teacher's do.

    paper:     1/k sum_i  mean |z(phi_t(t_i)) - z(f(phi_s(s_i)))|^2    pixels, images, channels
                   t divided by the standard deviation of its level (teacher_side.py)
                   z for "correlation": each channel of each image standardised over its pixels,
                   so that the mean is that of 2 (1 - r), r Pearson's correlation; for "values",
                   as in the paper: the identity
    official:      sum_i  ||phi_t(t_i) - f(phi_s(s_i))||_2        the whole tensor, padding too

Letters: B images, h w a map, P its pixels, C channels (student Cs, teacher Ct).

Source: the paper's section 3.1; mmdet/models/detectors/two_stage.py of the author's release.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float

from drkd_jax.distill.config import PixelRelationConfig
from drkd_jax.distill.gram_distance import FLAT, Distance, Level, gram_distances
from drkd_jax.distill.graph_unit import GraphUnit, grouped
from drkd_jax.distill.layers import Linear, accumulator, safe_ratio, safe_sqrt
from drkd_jax.distill.pairing import LevelPair
from drkd_jax.distill.teacher_side import average_towards, check_channels, prepare_teacher
from drkd_jax.ops.platform import platform
from drkd_jax.types import Array, FeatureSpec


def plain_distance(
    student: GraphUnit,
    teacher: GraphUnit,
    adaptation: Linear,
    s: Float[Array, "B P Cs"],
    t: Float[Array, "B P Ct"],
    mask: Bool[Array, "B P"],
    *,
    compare: str,
    groups: int,
    train: bool,
) -> Distance:
    """The distance of one level, pixel by pixel.

    Args:
        student: its graph unit, whose running statistics move in training.
        teacher: likewise.
        adaptation: f.
        s: the student's map.
        t: the teacher's.
        mask: the valid pixels.
        compare: as in `PixelRelationConfig`.
        groups: how many groups the batch is split into; each has its own statistics.
        train: as in `GraphUnit`.

    Returns:
        Sums per image, in float32 at least.
    """
    wide = accumulator(s, t)
    student_phi = adaptation(student(s, mask, groups=groups, train=train)).astype(wide)
    teacher_phi = teacher(t, mask, groups=groups, train=train).astype(wide)
    of_teacher = [energies(jax.lax.stop_gradient(x), mask) for x in (teacher_phi, t)]
    if compare == "correlation":
        student_phi, teacher_phi = (standardized(x, mask) for x in (student_phi, teacher_phi))
    difference = jnp.where(mask[:, :, None], teacher_phi - student_phi, 0)
    squares, count = (difference * difference).sum((1, 2)), mask.sum(1).astype(wide)
    return Distance(squares, *of_teacher[0], *of_teacher[1], count)


def standardized(x: Float[Array, "B P C"], mask: Bool[Array, "B P"]) -> Float[Array, "B P C"]:
    """Standardises each channel of each image over its pixels; 0 at invalid pixels."""
    inside, count = mask[:, :, None], mask.sum(1)[:, None, None]
    mean = safe_ratio(jnp.where(inside, x, 0).sum(1, keepdims=True), count)
    off = jnp.where(inside, x - mean, 0)
    return off * jax.lax.rsqrt(safe_ratio((off * off).sum(1, keepdims=True), count) + FLAT)


def energies(
    x: Float[Array, "B P C"], mask: Bool[Array, "B P"]
) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
    """Sum of squares over valid pixels, and the same about the mean over the pixels."""
    x = jnp.where(mask[:, :, None], x.astype(accumulator(x)), 0)
    mean = safe_ratio(x.sum(1), mask.sum(1)[:, None])
    off = jnp.where(mask[:, :, None], x - mean[:, None], 0)
    return (x * x).sum((1, 2)), (off * off).sum((1, 2))


class PixelRelation(nnx.Module):
    """The term over all paired levels.

    Attributes:
        student, teacher: one graph unit per level; no `teacher` where the student's are shared.
        adaptation: f, a 1x1 convolution per level, student's channels to the teacher's.
    """

    def __init__(
        self,
        config: PixelRelationConfig,
        pairs: tuple[LevelPair, ...],
        student: FeatureSpec,
        teacher: FeatureSpec,
        *,
        rngs: nnx.Rngs,
    ):
        self.config = config
        self.pairs = pairs
        sides: tuple[list[GraphUnit], list[GraphUnit]] = ([], [])
        adaptation = []
        for i, pair in enumerate(pairs):
            nodes = config.nodes[min(i, len(config.nodes) - 1)]
            widths = student.channels[pair.student], teacher.channels[pair.teacher]
            check_channels("pixel_relation", str(config.teacher_modules), pair.name, *widths)
            scales = float(config.student_scale or 0), float(config.teacher_scale or 0)
            for side, width, scale in zip(sides, widths, scales, strict=True):
                unit = GraphUnit(
                    width, nodes, normalize=bool(config.normalize), scale=scale, rngs=rngs
                )
                side.append(unit)
            adaptation.append(Linear(*widths, rngs=rngs))
        self.student = nnx.List(sides[0])
        if config.teacher_modules != "shared":
            self.teacher = nnx.List(sides[1])
            prepare_teacher(self.teacher, self.student, str(config.teacher_modules))
        self.adaptation = nnx.List(adaptation)

    def teacher_unit(self, level: int) -> GraphUnit:
        """The unit that embeds the teacher's map of a paired level."""
        shared = self.config.teacher_modules == "shared"
        return self.student[level] if shared else self.teacher[level]

    def uses_gram(self, pixels: int) -> bool:
        """Whether the distance of a map with this many pixels is computed from its Gram matrix.

        With "auto", accelerators use it on every level: levels with equally many nodes then share
        one call, and small levels mostly cost kernel launches.
        """
        if self.config.arithmetic == "auto":
            return pixels >= self.config.gram_from_pixels or platform() != "cpu"
        return self.config.arithmetic == "gram"

    def distances(
        self,
        student: tuple[Float[Array, "B _h _w _C"], ...],
        teacher: tuple[Float[Array, "B _h _w _C"], ...],
        masks: tuple[Bool[Array, "B _h _w"], ...],
        *,
        groups: int = 1,
        train: bool = True,
    ) -> list[Distance]:
        """The sums of each paired level, per image."""
        found: dict[int, Distance] = {}
        by_gram = []
        compare = str(self.config.compare)
        for i, (s, t, mask) in enumerate(
            zip(student, teacher, map(jnp.asarray, masks), strict=True)
        ):
            units = self.student[i], self.teacher_unit(i), self.adaptation[i]
            images, pixels = s.shape[0], s.shape[1] * s.shape[2]
            if self.uses_gram(pixels):
                by_gram.append((i, Level(*units, s, t, mask)))
                continue
            flat_s, flat_t = (x.reshape(images, pixels, x.shape[3]) for x in (s, t))
            inside = mask.reshape(images, pixels)
            found[i] = plain_distance(
                *(*units, flat_s, flat_t, inside), compare=compare, groups=groups, train=train
            )
        # On a CPU one level per call, so that each level decides alone whether to be recomputed.
        calls = [[one] for one in by_gram] if platform() == "cpu" else [by_gram] * bool(by_gram)
        for call in calls:
            levels = [level for _, level in call]
            sums = gram_distances(
                levels, compare=compare, groups=groups, train=train, guard=self.config.gram_guard
            )
            found |= {i: one for (i, _), one in zip(call, sums, strict=True)}
        return [found[i] for i in range(len(self.pairs))]

    def __call__(
        self,
        student: tuple[Float[Array, "B _h _w _C"], ...],
        teacher: tuple[Float[Array, "B _h _w _C"], ...],
        masks: tuple[Bool[Array, "B _h _w"], ...],
        *,
        groups: int = 1,
        train: bool = True,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The unweighted loss, and the diagnostics that monitoring/collapse.py watches.

        Args:
            student: one map per paired level, finest first.
            teacher: likewise.
            masks: the valid pixels.
            groups: official form: how many groups the batch is split into; each has its own norm.
            train: use batch statistics and update the running ones; otherwise use the running ones.

        Returns:
            The loss and the diagnostics, named by level.
        """
        config = self.config
        each = self.distances(student, teacher, masks, groups=groups, train=train)
        sums = Distance(*(jnp.stack(rows) for rows in zip(*each, strict=True)))
        if config.form == "official":
            norms = jax.vmap(lambda squares: safe_sqrt(grouped(squares, groups).sum(1)))
            losses = norms(sums.squares).mean(1)
        else:
            channels = jnp.asarray([t.shape[-1] for t in teacher], sums.count.dtype)
            losses = safe_ratio(sums.squares.sum(1), sums.count.sum(1) * channels)
        norm = safe_sqrt(safe_ratio(sums.energy.sum(1), sums.input_energy.sum(1)))
        variance = safe_ratio(sums.spread.sum(1), sums.input_spread.sum(1))
        diagnostics: dict[str, jax.Array] = {}
        for level, pair in enumerate(self.pairs):
            name = f"pixel_relation/{pair.name}"
            diagnostics[f"{name}/loss"] = losses[level]
            diagnostics[f"{name}/teacher_norm"] = norm[level]
            diagnostics[f"{name}/teacher_variance"] = variance[level]
        total = losses.sum()
        loss = total if config.form == "official" else total / len(self.pairs)
        if train and config.teacher_modules == "average":
            average_towards(self.teacher, self.student, config.momentum)
        return loss, jax.lax.stop_gradient(diagnostics)
