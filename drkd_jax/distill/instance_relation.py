"""L_IR: the boxes of an image should attend to each other as they do in the teacher.

    psi_ij = softmax_j( w_ij a_ij )       w: the relation filter, a softmax over j
    a_ij = cos(x_i - m, x_j - m) / T                        cosine, m the mean box of the image
         = <g(x_i), g(x_j)> / (sqrt(E) T)                   embedded
         = <g1(x_i), g2(x_j)>                               bilinear, as the author's
    paper:     mean over levels, images with a choice, boxes i  of  sum_j (psi_t - psi_s)^2
    official:  sum over levels and images of || z_t - f(z_s) ||_2,   z = x + W(psi g(x))

Letters: B images, n boxes, S bins, C channels (student Cs, teacher Ct), D = S S C, E embedding,
r rank of the filter.

Two different random embeddings do not measure similarity: the rows of psi come out within a few
percent of uniform and teach nothing (docs/method.md). The default is therefore the cosine. With it
the filter is scaled to mean 1 in each row, not 1/n, so that it emphasises some pairs without
flattening the others.

The author's filter is a linear layer from a box's features to n outputs, created anew with random
weights at each step: it is never trained, and output j belongs to a position in the list, not to a
box. `LearnedFilter` keeps the meaning (a linear map of x_i whose output j is about box j) but
computes the weights of output j from box j, so it handles any number of boxes in any order.

Source: the paper's section 3.2 and abstract ("similarity of different instances");
mmdet/models/detectors/two_stage.py of the author's release.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float

from drkd_jax.distill.config import InstanceRelationConfig
from drkd_jax.distill.layers import (
    Linear,
    LinearMap,
    accumulator,
    product,
    safe_ratio,
    safe_sqrt,
    uniform,
)
from drkd_jax.distill.pairing import LevelPair
from drkd_jax.distill.teacher_side import average_towards, check_channels, prepare_teacher
from drkd_jax.errors import UserError
from drkd_jax.frozen import Frozen
from drkd_jax.types import Array, FeatureSpec

COSINE_EPS = 1e-6  # added to the mean square about the mean box, in the features' unit
RANDOM_FILTER_ROWS = 256  # boxes of one image that the random filter has outputs for


def masked_softmax(
    logits: Float[Array, "B n n"], valid: Bool[Array, "B n"], *, diagonal: bool = True
) -> Float[Array, "B n n"]:
    """Softmax over the valid boxes j; 0 elsewhere and in the rows of invalid boxes.

    Without the diagonal a box does not attend to itself. An image without boxes gives zeros with
    gradient 0.
    """
    pairs = valid[:, :, None] & valid[:, None, :]
    if not diagonal:
        pairs = pairs & ~jnp.eye(logits.shape[-1], dtype=bool)
    # A finite floor: a row without any valid box would otherwise compute inf - inf.
    floor = jnp.where(pairs, logits, -1e30)
    return jnp.where(pairs, jax.nn.softmax(floor, axis=-1), 0)


class LearnedFilter(nnx.Module):
    """w_ij = softmax_j( <u(x_i), v(x_j)> / sqrt(r) + c(x_j) ), linear u, v and c."""

    def __init__(self, inputs: int, rank: int, *, rngs: nnx.Rngs):
        self.query = Linear(inputs, rank, rngs=rngs)
        self.key = Linear(inputs, rank, rngs=rngs)
        self.offset = LinearMap(inputs, 1, rngs=rngs)  # softmax would cancel a bias

    def __call__(
        self, x: Float[Array, "B n D"], valid: Bool[Array, "B n"]
    ) -> Float[Array, "B n n"]:
        """The filter of each image's boxes; 0 where a box is not valid."""
        query, key = self.query(x), self.key(x)
        logits = product("bir,bjr->bij", query, key) * query.shape[-1] ** -0.5
        return masked_softmax(logits + self.offset(x)[..., 0][:, None, :], valid)


class RandomFilter(nnx.Module):
    """The author's filter with its random weights drawn once; n boxes use the first n outputs.

    Source: `resize` of the relation class in mmdet/models/detectors/two_stage.py of the author's
    release, which creates the layer anew at each call.
    """

    def __init__(self, inputs: int, most: int, *, rngs: nnx.Rngs):
        self.kernel = Frozen(uniform(rngs.params(), (inputs, most), inputs))
        self.bias = Frozen(uniform(rngs.params(), (most,), inputs))

    def __call__(
        self, x: Float[Array, "B n D"], valid: Bool[Array, "B n"]
    ) -> Float[Array, "B n n"]:
        """The filter of each image's boxes; 0 where a box is not valid.

        Raises:
            UserError: there are more box rows than the filter has outputs.
        """
        n, most = x.shape[1], self.kernel.shape[1]
        if n > most:
            raise UserError(
                f"distill.instance_relation.filter = 'random' serves {most} boxes of an image, "
                f"and there are rows for {n}: set distill.max_boxes = {most}, or another filter."
            )
        kernel, bias = self.kernel[:, :n].astype(x.dtype), self.bias[:n].astype(x.dtype)
        return masked_softmax(product("bid,dj->bij", x, kernel) + bias, valid)


def _make_filter(
    inputs: int, config: InstanceRelationConfig, rngs: nnx.Rngs
) -> LearnedFilter | RandomFilter | None:
    if config.filter == "learned":
        return LearnedFilter(inputs, config.filter_rank, rngs=rngs)
    if config.filter == "random":
        return RandomFilter(inputs, RANDOM_FILTER_ROWS, rngs=rngs)
    return None


class RelationUnit(nnx.Module):
    """Relates the boxes of one image.

    Attributes:
        first, second: g1 and g2, the embeddings; g alone for "embedded", none for "cosine".
        filter: w, or None.
        value, back: g and W of the official form; None in the paper's.
    """

    def __init__(self, inputs: int, config: InstanceRelationConfig, *, rngs: nnx.Rngs):
        width = config.embedding or inputs // 2
        self.config = config
        kind = config.similarity
        self.first = Linear(inputs, width, rngs=rngs) if kind != "cosine" else None
        self.second = Linear(inputs, width, rngs=rngs) if kind == "bilinear" else None
        self.filter = _make_filter(inputs, config, rngs)
        official = config.form == "official"
        self.value = Linear(inputs, width, rngs=rngs) if official else None
        self.back = Linear(width, inputs, rngs=rngs) if official else None

    def relation(
        self, x: Float[Array, "B n D"], valid: Bool[Array, "B n"]
    ) -> Float[Array, "B n n"]:
        """psi: rows of valid boxes sum to 1; 0 in rows and columns of the others.

        Without the diagonal, the only box of an image has a row of zeros.
        """
        logits = self.similarity(x, valid)
        if self.filter is not None:
            w = self.filter(x, valid)
            if self.config.similarity != "bilinear":
                w = w * valid.sum(1).astype(w.dtype)[:, None, None]
            logits = logits * w
        return masked_softmax(logits, valid, diagonal=bool(self.config.diagonal))

    def similarity(
        self, x: Float[Array, "B n D"], valid: Bool[Array, "B n"]
    ) -> Float[Array, "B n n"]:
        """The similarity a of every two boxes (temperature included); meaningless off `valid`."""
        if self.first is None:
            unit = centred_directions(x, valid)
            return product("bid,bjd->bij", unit, unit) / self.config.temperature
        if self.second is None:
            g = self.first(x)
            root = g.shape[-1] ** 0.5
            return product("bie,bje->bij", g, g) / (root * self.config.temperature)
        return product("bie,bje->bij", self.first(x), self.second(x))

    def enhance(
        self, x: Float[Array, "B n D"], psi: Float[Array, "B n n"]
    ) -> Float[Array, "B n D"]:
        """Adds W(psi g(x)) to x: the enhanced instances z, official form only."""
        assert self.value is not None
        assert self.back is not None
        mixed = product("bij,bje->bie", psi.astype(x.dtype), self.value(x)).astype(x.dtype)
        return x + self.back(mixed)


def centred_directions(
    x: Float[Array, "B n D"], valid: Bool[Array, "B n"]
) -> Float[Array, "B n D"]:
    """Each box minus the mean box of its image, scaled to length 1: dot products are cosines.

    Args:
        x: the boxes' features.
        valid: rows that hold a box, not padding.

    Returns:
        In float32 at least; 0 for invalid boxes, and near 0 for boxes that equal the mean (a single
        box, or identical ones): they have no direction, and their gradients stay bounded.
    """
    wide = x.astype(accumulator(x))
    there = valid[:, :, None]
    mean = safe_ratio(jnp.where(there, wide, 0).sum(1), valid.sum(1)[:, None])
    off = jnp.where(there, wide - mean[:, None], 0)
    return off * jax.lax.rsqrt((off * off).sum(-1, keepdims=True) + COSINE_EPS * x.shape[-1])


def flat(regions: Float[Array, "B n S S C"]) -> Float[Array, "B n D"]:
    """Flattens each region into one vector: bins along y, bins along x, channels."""
    return regions.reshape(*regions.shape[:2], -1)


def row_entropy(
    psi: Float[Array, "B n n"], valid: Bool[Array, "B n"], *, diagonal: bool = True
) -> Float[Array, ""]:
    """Mean entropy of the rows as a share of the largest possible entropy: 1 is uniform.

    The largest is log n, or log (n - 1) where a row leaves its own box out. The mean is over images
    with at least two boxes to choose from.
    """
    valid = jnp.asarray(valid)
    number = valid.sum(1) - (not diagonal)
    entropy = -(psi * jnp.log(jnp.where(psi > 0, psi, 1))).sum(2)
    rows = valid & (number >= 2)[:, None]
    share = entropy / jnp.log(jnp.maximum(number, 2))[:, None]
    return safe_ratio(jnp.where(rows, share, 0).sum(), rows.sum())


class InstanceRelation(nnx.Module):
    """The term over the finest common levels.

    Attributes:
        student, teacher: one relation unit per level; no `teacher` where the student's are shared.
        adaptation: f, a 1x1 convolution per level; official form only.
    """

    def __init__(
        self,
        config: InstanceRelationConfig,
        pairs: tuple[LevelPair, ...],
        student: FeatureSpec,
        teacher: FeatureSpec,
        size: int,
        *,
        rngs: nnx.Rngs,
    ):
        self.config = config
        self.pairs = pairs
        sides: tuple[list[RelationUnit], list[RelationUnit]] = ([], [])
        adaptation = []
        for pair in pairs:
            widths = student.channels[pair.student], teacher.channels[pair.teacher]
            check_channels("instance_relation", str(config.teacher_modules), pair.name, *widths)
            for side, width in zip(sides, widths, strict=True):
                side.append(RelationUnit(size * size * width, config, rngs=rngs))
            adaptation.append(Linear(*widths, rngs=rngs))
        self.student = nnx.List(sides[0])
        if config.teacher_modules != "shared":
            self.teacher = nnx.List(sides[1])
            prepare_teacher(self.teacher, self.student, str(config.teacher_modules))
        if config.form == "official":
            self.adaptation = nnx.List(adaptation)

    def teacher_unit(self, level: int) -> RelationUnit:
        """The unit that relates the teacher's boxes on a level."""
        shared = self.config.teacher_modules == "shared"
        return self.student[level] if shared else self.teacher[level]

    def __call__(
        self,
        student: tuple[Float[Array, "B n S S _C"], ...],
        teacher: tuple[Float[Array, "B n S S _C"], ...],
        valid: Bool[Array, "B n"],
        *,
        groups: int = 1,
        train: bool = True,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The unweighted loss, and the diagnostics that monitoring/collapse.py watches.

        Args:
            student: the regions of the boxes, one array per level.
            teacher: likewise.
            valid: rows that hold a box, not padding.
            groups: official form: the sum over images is divided by this number of groups.
            train: update the running average of the student's modules, if there is one.

        Returns:
            The loss and the diagnostics, named by level.
        """
        valid = jnp.asarray(valid)
        losses = []
        diagnostics: dict[str, jax.Array] = {}
        for level, pair in enumerate(self.pairs):
            x_s, x_t = flat(student[level]), flat(teacher[level])
            units = self.student[level], self.teacher_unit(level)
            psi_s, psi_t = units[0].relation(x_s, valid), units[1].relation(x_t, valid)
            name = f"instance_relation/{pair.name}"
            if self.config.form == "official":
                z_s, z_t = units[0].enhance(x_s, psi_s), units[1].enhance(x_t, psi_t)
                mapped = flat(self.adaptation[level](z_s.reshape(student[level].shape)))
                difference = jnp.where(valid[:, :, None], z_t - mapped, 0)
                norms = safe_sqrt((difference.astype(psi_s.dtype) ** 2).sum((1, 2)))
                losses.append(norms.sum() / groups)
                over, under = (
                    jnp.where(valid[:, :, None], value, 0).astype(psi_s.dtype)
                    for value in (z_t, x_t)
                )
                ratio = safe_sqrt(safe_ratio((over**2).sum(), (under**2).sum()))
                diagnostics[f"{name}/teacher_norm"] = ratio
            else:
                number = valid.sum(1)
                choice = number - (not self.config.diagonal) >= 2
                rows = ((psi_t - psi_s) ** 2).sum(2)
                images = jnp.where(choice, safe_ratio(rows.sum(1), number), 0)
                losses.append(safe_ratio(images.sum(), choice.sum()))
            diagnostics[f"{name}/loss"] = losses[-1]
            diagnostics[f"{name}/teacher_entropy"] = row_entropy(
                psi_t, valid, diagonal=bool(self.config.diagonal)
            )
            diagnostics[f"{name}/student_entropy"] = row_entropy(
                psi_s, valid, diagonal=bool(self.config.diagonal)
            )
        total = jnp.stack(losses).sum()
        loss = total if self.config.form == "official" else total / len(losses)
        if train and self.config.teacher_modules == "average":
            average_towards(self.teacher, self.student, self.config.momentum)
        return loss, jax.lax.stop_gradient(diagnostics)
