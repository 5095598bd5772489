"""All terms of the distillation, computed from a student's and a teacher's features.

The distiller is discarded after training, so the student's inference cost does not change.

Letters: B images, G padded ground truths, h w a map, C channels, n boxes used.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float, Int, Key

from drkd_jax.distill.baselines.map_term import MapTermConfig, Seen
from drkd_jax.distill.config import DistillConfig
from drkd_jax.distill.instance_feature import InstanceFeature
from drkd_jax.distill.instance_relation import InstanceRelation, flat
from drkd_jax.distill.layers import pixel_mask
from drkd_jax.distill.pairing import check_maps, check_responses, pair_levels
from drkd_jax.distill.pixel_relation import PixelRelation
from drkd_jax.distill.regions import ChosenBoxes, choose_boxes, cut, cut_both
from drkd_jax.distill.teacher_side import TeacherScale, inverse_deviation
from drkd_jax.errors import UserError
from drkd_jax.types import Array, Features, FeatureSpec, Responses, Targets

Side = Literal["student", "teacher"]


class DistillOutput(NamedTuple):
    """The results for one batch, all float32 scalars (float64 if the distiller's dtype is)."""

    total: jax.Array  # the weighted sum of the losses
    losses: dict[str, jax.Array]  # unweighted, by term
    diagnostics: dict[str, jax.Array]  # numbers to log; no gradient


class Distiller(nnx.Module):
    """The terms that the config asks for, each over the levels that both pyramids have.

    A training call updates running statistics (and averages), which are not trained parameters: a
    functional step must read them from the module afterwards. The student side's modules are
    `nnx.Param`; the teacher's are only if the config trains them.

    Attributes:
        pairs: the levels in common, finest first.
        specs: the two pyramids.
        pixel_relation, instance_relation, instance_feature: DRKD's terms, or None.
        map_terms: the other distillers that are on, by name.
        teacher_scale: what the default form divides the teacher's maps by, or None.
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
        """Creates the modules of all terms.

        Args:
            config: the settings.
            student: the student's pyramid.
            teacher: the teacher's pyramid; channels and levels may differ from the student's.
            rngs: random numbers for the initial weights.
            dtype: dtype of the features; sums and losses are in float32 at least.

        Raises:
            UserError: the pyramids have no level in common, or `teacher_modules` needs equal
                channels where they differ.
        """
        self.config = config
        self.dtype = dtype
        self.pairs = pair_levels(student, teacher)
        self.specs = student, teacher
        near = self.pairs[: config.region_levels]
        specs = self.specs
        terms, size = config.terms, config.region_size
        pixel, relation = terms.get("pixel_relation"), terms.get("instance_relation")
        feature = terms.get("instance_feature")
        self.pixel_relation: PixelRelation | None = (
            PixelRelation(pixel, self.pairs, *specs, rngs=rngs) if pixel else None
        )
        self.instance_relation: InstanceRelation | None = (
            InstanceRelation(relation, near, *specs, size, rngs=rngs) if relation else None
        )
        self.instance_feature: InstanceFeature | None = (
            InstanceFeature(feature, near, *specs, rngs=rngs) if feature else None
        )
        others = {n: value for n, value in terms.items() if isinstance(value, MapTermConfig)}
        self.map_terms = nnx.Dict(
            {name: value.build(self.pairs, *specs, rngs=rngs) for name, value in others.items()}
        )
        scaled = config.standardize_teacher and any(t.form == "paper" for t in terms.values())
        self.teacher_scale: TeacherScale | None = TeacherScale(len(self.pairs)) if scaled else None

    @property
    def weights(self) -> dict[str, float]:
        """What each loss is multiplied by in the total."""
        return {name: float(value.weight) for name, value in self.config.terms.items()}

    @property
    def head_layers(self) -> int | None:
        """After how many head layers the distiller reads the heads; None: it does not."""
        term = self.config.terms.get("crosskd")
        return term.layers if term else None

    def is_trained(self, path: tuple[Any, ...], variable: Any) -> bool:
        """Filter for `nnx.split`: what the optimiser updates, that is every `nnx.Param`."""
        return nnx.filterlib.to_predicate(nnx.Param)(path, variable)

    def __call__(
        self,
        student: tuple[Any, ...],
        teacher: tuple[Any, ...],
        boxes: Float[Array, "B G 4"],
        valid: Bool[Array, "B G"],
        sizes: Int[Array, "B 2"],
        image_valid: Bool[Array, "B"] | None = None,
        *,
        keys: Key[Array, "B"] | None = None,
        responses: Responses | None = None,
        train: bool = True,
    ) -> DistillOutput:
        """Compares the two sides' features of one batch.

        Args:
            student: the student's maps [B, h, w, C], one per level of its pyramid, finest first.
            teacher: the teacher's, likewise; no gradient passes to them.
            boxes: ground truth, xyxy, pixels of the padded image.
            valid: rows of `boxes` that hold a box, not padding.
            sizes: height and width of each image without its padding, pixels.
            image_valid: False for images that only fill up the batch. None: all are valid.
            keys: one random key per image and step, for terms with random draws (MGD); None:
                they derive keys from the number of the call and the position in the batch.
            responses: both sides' head outputs, needed by CrossKD only; no gradient passes to the
                teacher's.
            train: use batch statistics and update the state; otherwise use the running statistics.

        Returns:
            The total, the unweighted losses, and the diagnostics, by name.

        Raises:
            UserError: feature or head maps do not match the specs, the official form's
                `images_per_device` does not divide the batch, or CrossKD has no responses.
        """
        pixels = bool(self.map_terms) or self.pixel_relation is not None
        check_maps(self.pairs, self.specs, (student, teacher), alike=pixels)
        boxes, valid, sizes = jnp.asarray(boxes), jnp.asarray(valid), jnp.asarray(sizes)
        if not valid.shape[1]:  # one invalid row is equivalent to no rows
            boxes, valid = (
                jnp.pad(x, [(0, k == 1) for k in range(x.ndim)]) for x in (boxes, valid)
            )
        if image_valid is None:
            image_valid = jnp.ones(sizes.shape[0], bool)
        s = tuple(student[pair.student].astype(self.dtype) for pair in self.pairs)
        t = tuple(teacher[pair.teacher].astype(self.dtype) for pair in self.pairs)
        t = jax.lax.stop_gradient(t)
        images = s[0].shape[0]
        terms = self.config.terms
        masks = {form: self.masks(s, sizes, image_valid, form) for form in ("paper", "official")}
        of_teacher = {"paper": t, "official": t}
        if self.teacher_scale is not None:
            of_teacher["paper"] = self.teacher_scale(t, masks["paper"], train=train)
        groups = {"paper": 1, "official": self._groups(images)}
        losses: dict[str, jax.Array] = {}
        diagnostics: dict[str, jax.Array] = {}
        if self.pixel_relation is not None:
            form = terms["pixel_relation"].form
            losses["pixel_relation"], found = self.pixel_relation(
                s, of_teacher[form], masks[form], groups=groups[form], train=train
            )
            diagnostics |= found
        if self.instance_relation is not None or self.instance_feature is not None:
            chosen = choose_boxes(boxes, valid & image_valid[:, None], self.config.max_boxes)
            diagnostics["boxes"] = chosen.valid.sum().astype(jnp.float32)
            diagnostics["boxes_left_out"] = chosen.left_out.astype(jnp.float32)
            regions = {
                form: self._regions(
                    s, of_teacher[form], chosen, None if form == "official" else sizes
                )
                for form in {term.form for name, term in terms.items() if "instance" in name}
            }
        if self.instance_relation is not None:
            form = terms["instance_relation"].form
            losses["instance_relation"], found = self.instance_relation(
                *regions[form], chosen.valid, groups=groups[form], train=train
            )
            diagnostics |= found
        if self.instance_feature is not None:
            form = terms["instance_feature"].form
            losses["instance_feature"], found = self.instance_feature(
                *regions[form], chosen.valid, groups=groups[form]
            )
            diagnostics |= found
        if self.map_terms:
            there = valid & image_valid[:, None]
            heads = self._responses(responses, (student, teacher))
            seen = Seen(s, of_teacher["paper"], masks["paper"], boxes, there, keys, train, heads)
        for name, term in self.map_terms.items():
            losses[name], found = term(seen)
            diagnostics |= {f"{name}/{what}": value for what, value in found.items()}
        weights = self.weights
        weighted = [weights[name] * loss for name, loss in losses.items()]
        total = jnp.stack(weighted).sum() if weighted else jnp.zeros((), jnp.float32)
        return DistillOutput(total, losses, diagnostics)

    def _responses(self, given: Responses | None, maps: Any) -> Responses | None:
        """The heads' maps of the paired levels, in the distiller's dtype."""
        if given is None or self.head_layers is None:
            return None
        check_responses(self.specs, maps, given)
        s, t = jax.tree.map(lambda x: jnp.asarray(x, self.dtype), (given.student, given.teacher))
        s, t = tuple(s[p.student] for p in self.pairs), tuple(t[p.teacher] for p in self.pairs)
        return Responses(s, jax.lax.stop_gradient(t), given.head)

    def _groups(self, images: int) -> int:
        """How many of the author's devices the batch stands for, in the official form.

        Raises:
            UserError: it is not a whole number.
        """
        if all(term.form != "official" for term in self.config.terms.values()):
            return 1
        each = min(self.config.images_per_device, images)
        if images % each:
            raise UserError(
                f"distill.images_per_device = {each} does not divide the batch of {images} "
                "images, which the official form needs: change one of them."
            )
        return images // each

    def _regions(
        self,
        student: tuple[jax.Array, ...],
        teacher: tuple[jax.Array, ...],
        chosen: ChosenBoxes,
        sizes: Array | None,
    ) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
        """Both sides' regions on the finest paired levels."""
        near = self.pairs[: self.config.region_levels]
        strides = tuple(pair.stride for pair in near)
        sides = student[: len(near)], teacher[: len(near)]
        of_student, of_teacher = cut_both(sides, chosen, strides, self.config.region_size, sizes)
        return of_student, of_teacher

    def masks(
        self,
        student: tuple[Any, ...],
        sizes: Int[Array, "B 2"],
        image_valid: Bool[Array, "B"],
        form: str,
    ) -> tuple[jax.Array, ...]:
        """The valid pixels of each paired level.

        In the official form the padding of an image is valid too; images that only fill up the
        batch have no valid pixels in either form.
        """
        masks = []
        for pair, x in zip(self.pairs, student, strict=True):
            shape = x.shape[1:3]
            counted = sizes
            if form == "official":
                counted = jnp.full_like(sizes, max(shape) * pair.stride)
            masks.append(pixel_mask(counted, image_valid, pair.stride, shape))
        return tuple(masks)


def _of_side(
    distiller: Distiller,
    term: PixelRelation | InstanceRelation,
    features: Features,
    side: Side,
    level: int,
) -> tuple[jax.Array, Any]:
    """One side's map as a term sees it (scaled by the running variance), and the term's unit."""
    pair = distiller.pairs[level]
    x = features.maps[pair.student if side == "student" else pair.teacher]
    x = jnp.asarray(x).astype(distiller.dtype)
    if side == "student":
        return x, term.student[level]
    if distiller.teacher_scale is not None and term.config.form != "official":
        x = x * inverse_deviation(distiller.teacher_scale.variance[level]).astype(x.dtype)
    return x, term.teacher_unit(level)


def relation_features(
    distiller: Distiller, features: Features, side: Side, level: int, targets: Targets | None = None
) -> tuple[Float[jax.Array, "B h w C"], Float[jax.Array, "B h w C"]]:
    """One map before and after its relation module, for heat maps.

    Args:
        distiller: with a pixel relation.
        features: the features of that side.
        side: "student" or "teacher".
        level: which of the paired levels, 0 is the finest.
        targets: whose sizes mask padding (not in the official form); None: all pixels are valid.

    Returns:
        x and phi(x), normalised by the running statistics.

    Raises:
        UserError: the distiller has no pixel relation.
    """
    term = distiller.pixel_relation
    if term is None:
        raise UserError("distill.pixel_relation is off: there are no relation features to show.")
    x, unit = _of_side(distiller, term, features, side, level)
    mask = jnp.ones(x.shape[:3], bool)
    if targets is not None and term.config.form != "official":
        stride = distiller.pairs[level].stride
        mask = pixel_mask(targets.sizes, targets.image_valid, stride, x.shape[1:3])
    pixels = x.reshape(x.shape[0], -1, x.shape[-1])
    phi = unit(pixels, mask.reshape(mask.shape[0], -1), train=False)
    return x, phi.reshape(x.shape)


def relation_matrix(
    distiller: Distiller, features: Features, targets: Targets, side: Side, level: int
) -> Float[jax.Array, "B n n"]:
    """The relation matrix psi of each image's boxes, for plots.

    Args:
        distiller: with an instance relation.
        features: the features of that side.
        targets: the boxes; row i is the i-th valid one of its image.
        side: "student" or "teacher".
        level: which of the paired levels, 0 is the finest.

    Returns:
        psi; rows and columns past the valid boxes are 0.

    Raises:
        UserError: the distiller has no instance relation.
    """
    term = distiller.instance_relation
    if term is None:
        raise UserError("distill.instance_relation is off: there is no relation matrix to show.")
    valid = jnp.asarray(targets.valid) & jnp.asarray(targets.image_valid)[:, None]
    chosen = choose_boxes(jnp.asarray(targets.boxes), valid, distiller.config.max_boxes)
    x, unit = _of_side(distiller, term, features, side, level)
    sizes = None if term.config.form == "official" else targets.sizes
    stride, size = distiller.pairs[level].stride, distiller.config.region_size
    (regions,) = cut((x,), chosen, (stride,), size, sizes)
    return unit.relation(flat(regions), chosen.valid)
