"""All terms of the distillation over a student's and a teacher's features.

Thrown away after training: the student's own cost does not change.

Letters: B pictures, G padded ground truths, h w a map, C channels, n boxes looked at.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from drkd_jax.distill.config import DistillConfig
from drkd_jax.distill.instance_feature import InstanceFeature
from drkd_jax.distill.instance_relation import InstanceRelation, flat
from drkd_jax.distill.layers import pixel_mask
from drkd_jax.distill.pairing import pair_levels
from drkd_jax.distill.pixel_relation import PixelRelation
from drkd_jax.distill.regions import ChosenBoxes, choose_boxes, cut
from drkd_jax.errors import UserError
from drkd_jax.types import Array, Features, FeatureSpec, Targets

Side = Literal["student", "teacher"]


class DistillOutput(NamedTuple):
    """Losses before their weights, and numbers to log, all float32 scalars (float64 in float64)."""

    losses: dict[str, jax.Array]
    diagnostics: dict[str, jax.Array]


class Distiller(nnx.Module):
    """The terms that the config asks for, each over the levels that both pyramids have.

    A call in training moves running statistics (and averages) that are no trained parameters: the
    step takes them from the module afterwards.

    Attributes:
        pairs: the levels in common, finest first.
        pixel_relation, instance_relation, instance_feature: the terms, or None.
    """

    def __init__(
        self,
        config: DistillConfig,
        student: FeatureSpec,
        teacher: FeatureSpec,
        *,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
    ):
        """Makes the modules of all terms.

        Args:
            config: the settings.
            student: the student's pyramid.
            teacher: the teacher's pyramid; other channels and levels are welcome.
            rngs: random numbers for the starting weights.
            dtype: what features are computed in; sums and losses are in float32 at least.

        Raises:
            UserError: the pyramids have no level in common, or a way to embed the teacher's
                features asks for equal channels where they are not.
        """
        self.config = config
        self.dtype = dtype
        self.pairs = pair_levels(student, teacher)
        self.strides = student.strides, teacher.strides
        near = self.pairs[: config.region_levels]
        specs = student, teacher
        pixel, relation = config.pixel_relation, config.instance_relation
        feature, size = config.instance_feature, config.region_size
        self.pixel_relation: PixelRelation | None = (
            PixelRelation(pixel, self.pairs, *specs, rngs=rngs) if pixel else None
        )
        self.instance_relation: InstanceRelation | None = (
            InstanceRelation(relation, near, *specs, size, rngs=rngs) if relation else None
        )
        self.instance_feature: InstanceFeature | None = (
            InstanceFeature(feature, near, *specs, rngs=rngs) if feature else None
        )

    @property
    def terms(self) -> dict[str, Any]:
        """Settings of the terms that are there, by name."""
        config = self.config
        named = {
            "pixel_relation": config.pixel_relation,
            "instance_relation": config.instance_relation,
            "instance_feature": config.instance_feature,
        }
        return {name: value for name, value in named.items() if value is not None}

    @property
    def weights(self) -> dict[str, float]:
        """What each loss is multiplied by in the total."""
        return {name: float(value.weight) for name, value in self.terms.items()}

    def is_trained(self, path: tuple[Any, ...], variable: Any) -> bool:
        """Filter for `nnx.split`: parameters that the optimiser moves.

        The teacher's modules are among them only where the config has them trained.
        """
        for name, settings in self.terms.items():
            mode = getattr(settings, "teacher_modules", "trained")
            if tuple(path[:2]) == (name, "teacher") and mode != "trained":
                return False
        return nnx.filterlib.to_predicate(nnx.Param)(path, variable)

    def _groups(self, form: str, pictures: int) -> int:
        if form != "official":
            return 1
        each = min(self.config.pictures_per_device, pictures)
        if pictures % each:
            raise UserError(
                f"distill.pictures_per_device = {each} does not divide the batch of {pictures} "
                "pictures, which the official form needs: change one of them."
            )
        return pictures // each

    def __call__(
        self, student: Features, teacher: Features, targets: Targets, *, train: bool = True
    ) -> DistillOutput:
        """Compares the two sides' features of one batch.

        Args:
            student: the student's maps.
            teacher: the teacher's maps, gradient stopped by the caller.
            targets: picture sizes and ground truth.
            train: batch statistics, and states that move; else the running statistics.

        Returns:
            Losses before their weights, and diagnostics by name.
        """
        s = tuple(student.maps[pair.student].astype(self.dtype) for pair in self.pairs)
        t = tuple(teacher.maps[pair.teacher].astype(self.dtype) for pair in self.pairs)
        pictures = s[0].shape[0]
        losses: dict[str, jax.Array] = {}
        diagnostics: dict[str, jax.Array] = {}
        if self.pixel_relation is not None:
            form = self.pixel_relation.config.form
            loss, found = self.pixel_relation(
                s,
                t,
                self.masks(student, targets, form),
                groups=self._groups(form, pictures),
                train=train,
            )
            losses["pixel_relation"] = loss
            diagnostics |= found
        if self.instance_relation is None and self.instance_feature is None:
            return DistillOutput(losses, diagnostics)

        chosen = choose_boxes(targets, self.config.max_boxes)
        diagnostics["boxes"] = chosen.valid.sum().astype(jnp.float32)
        diagnostics["boxes_left_out"] = chosen.left_out.astype(jnp.float32)
        regions = {
            form: self._regions(s, t, chosen, None if form == "official" else targets.sizes)
            for form in {term.form for name, term in self.terms.items() if "instance" in name}
        }
        if self.instance_relation is not None:
            form = self.instance_relation.config.form
            groups = self._groups(form, pictures)
            loss, found = self.instance_relation(
                *regions[form], chosen.valid, groups=groups, train=train
            )
            losses["instance_relation"] = loss
            diagnostics |= found
        if self.instance_feature is not None:
            form = self.instance_feature.config.form
            groups = self._groups(form, pictures)
            loss, found = self.instance_feature(*regions[form], chosen.valid, groups=groups)
            losses["instance_feature"] = loss
            diagnostics |= found
        return DistillOutput(losses, diagnostics)

    def _regions(
        self,
        student: tuple[jax.Array, ...],
        teacher: tuple[jax.Array, ...],
        chosen: ChosenBoxes,
        sizes: Array | None,
    ) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
        """Both sides' regions on the finest paired levels, each with its own stride."""
        near, size = self.pairs[: self.config.region_levels], self.config.region_size
        of_student = tuple(
            cut(x, chosen, self.strides[0][pair.student], size, sizes)
            for x, pair in zip(student, near, strict=False)
        )
        of_teacher = tuple(
            cut(x, chosen, self.strides[1][pair.teacher], size, sizes)
            for x, pair in zip(teacher, near, strict=False)
        )
        return of_student, of_teacher

    def masks(self, student: Features, targets: Targets, form: str) -> tuple[jax.Array, ...]:
        """The pixels of each paired level that count.

        The official form counts the padding of a picture's canvas too; pictures that only fill
        the batch up count in neither.
        """
        masks = []
        for pair in self.pairs:
            shape = student.maps[pair.student].shape[1:3]
            sizes = targets.sizes
            if form == "official":
                sizes = jnp.full_like(sizes, max(shape) * pair.stride)
            masks.append(pixel_mask(sizes, targets.picture_valid, pair.stride, shape))
        return tuple(masks)


def relation_features(
    distiller: Distiller, features: Features, side: Side, level: int, targets: Targets | None = None
) -> tuple[Float[jax.Array, "B h w C"], Float[jax.Array, "B h w C"]]:
    """One map before and after its relation module, for heat maps.

    Args:
        distiller: with a pixel relation.
        features: the features of that side.
        side: "student" or "teacher".
        level: which of the paired levels, 0 is the finest.
        targets: leaves the padding out of the sums; without them all pixels count.

    Returns:
        x and phi(x), with the running statistics.

    Raises:
        UserError: the distiller has no pixel relation.
    """
    term = distiller.pixel_relation
    if term is None:
        raise UserError("distill.pixel_relation is None: there are no relation features to show.")
    pair = distiller.pairs[level]
    x = features.maps[pair.student if side == "student" else pair.teacher]
    x = jnp.asarray(x).astype(distiller.dtype)
    unit = term.student[level] if side == "student" else term.teacher_unit(level)
    mask = jnp.ones(x.shape[:3], bool)
    if targets is not None:
        mask = pixel_mask(targets.sizes, targets.picture_valid, pair.stride, x.shape[1:3])
    pixels = x.reshape(x.shape[0], -1, x.shape[-1])
    phi = unit(pixels, mask.reshape(mask.shape[0], -1), train=False)
    return x, phi.reshape(x.shape)


def relation_matrix(
    distiller: Distiller, features: Features, targets: Targets, side: Side, level: int
) -> Float[jax.Array, "B n n"]:
    """Relation matrix psi of each picture's boxes, for pictures of the matrix.

    Args:
        distiller: with an instance relation.
        features: the features of that side.
        targets: the boxes; row i is the i-th valid one of its picture.
        side: "student" or "teacher".
        level: which of the paired levels, 0 is the finest.

    Returns:
        psi, 0 past the valid boxes.

    Raises:
        UserError: the distiller has no instance relation.
    """
    term = distiller.instance_relation
    if term is None:
        raise UserError("distill.instance_relation is None: there is no relation matrix to show.")
    pair = distiller.pairs[level]
    place, stride = (
        (pair.student, distiller.strides[0][pair.student])
        if side == "student"
        else (pair.teacher, distiller.strides[1][pair.teacher])
    )
    chosen = choose_boxes(targets, distiller.config.max_boxes)
    x = jnp.asarray(features.maps[place]).astype(distiller.dtype)
    sizes = None if term.config.form == "official" else targets.sizes
    regions = cut(x, chosen, stride, distiller.config.region_size, sizes)
    unit = term.student[level] if side == "student" else term.teacher_unit(level)
    return unit.relation(flat(regions), chosen.valid)
