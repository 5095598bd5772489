"""Two detectors on one image: their maps, the relation of its pixels, the relation of its boxes.

Both see the same resized image, each by its own normalisation, so their maps lie over each other
as in a distillation.

Letters: B = 1 image, H W pixels of the canvas, h w a map, C channels, n boxes, N rows for boxes.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float

from drkd_jax import distill
from drkd_jax.distill.instance_relation import RelationUnit, flat
from drkd_jax.distill.regions import choose_boxes, cut
from drkd_jax.errors import UserError
from drkd_jax.models.pixels import Pixels
from drkd_jax.report.relations import of_image, similarity
from drkd_jax.types import Array, Batch, Detections, Features

LEAST_BOXES = 3  # with fewer a row without its own box has no choice


class Units(NamedTuple):
    """The relation modules that a distilled run trained for one of its two sides."""

    distiller: distill.Distiller
    side: Literal["student", "teacher"]


@dataclasses.dataclass(frozen=True)
class Model:
    """One of the two.

    Attributes:
        name: as the figures call it.
        detector: of ours, with its arrays.
        pixels: its input.
        units: of its own run, or of the run that it teaches; None: it has none.
    """

    name: str
    detector: Any
    pixels: Pixels
    units: Units | None = None

    @functools.cached_property
    def look(self) -> Look:
        """Compiles once for each canvas."""
        return Look(self)


class Maps(NamedTuple):
    """One level of one image, without its padding."""

    x: Float[np.ndarray, "h w C"]
    phi: Float[np.ndarray, "h w C"] | None  # behind the graph unit, where there is one


class Seen(NamedTuple):
    """What a model makes of an image."""

    features: Features  # on the device, over the canvas
    phi: dict[int, Any]  # [1, h, w, C] by stride, where there are units
    found: Detections | None
    sizes: tuple[int, int]  # height and width of the image on the canvas

    def maps(self, stride: int) -> Maps:
        """The level of this stride."""
        shape = tuple(-(-side // stride) for side in self.sizes)
        x, phi = self.features.maps[self.features.spec.strides.index(stride)], self.phi.get(stride)
        return Maps(of_image(x, *shape), None if phi is None else of_image(phi, *shape))


class Look:
    """A model's compiled programs."""

    def __init__(self, model: Model):
        self._units = model.units
        modules = (model.detector, model.units.distiller if model.units else None)
        graph, state = nnx.split(modules)
        self._state = nnx.as_pure(state)

        def run(
            state: Any, batch: Batch, detect: bool
        ) -> tuple[Features, dict[int, Any], Detections | None]:
            detector, distiller = nnx.merge(graph, state, copy=True)
            images, targets = model.pixels.prepare(batch)
            features = detector.features(images)
            phi = {}
            if distiller is not None and distiller.pixel_relation is not None:
                assert model.units is not None
                for level, pair in enumerate(distiller.pairs):
                    side = model.units.side
                    after = distill.relation_features(distiller, features, side, level, targets)[1]
                    phi[pair.stride] = after
            return features, phi, detector.predict(features, targets.sizes) if detect else None

        self._run = jax.jit(run, static_argnames="detect")

    def __call__(self, batch: Batch, *, detect: bool) -> Seen:
        """Args: a batch of one image; whether detections are wanted."""
        features, phi, found = self._run(self._state, batch, detect=detect)
        height, width = (int(side) for side in np.asarray(batch.sizes)[0])
        return Seen(features, phi, found, (height, width))


def common_levels(a: Model, b: Model) -> dict[str, int]:
    """The levels that both pyramids have, name to stride, finest first.

    Raises:
        UserError: there is none.
    """
    try:
        pairs = distill.pair_levels(a.detector.spec, b.detector.spec)
    except UserError as error:
        raise UserError(f"--weights (the student) and --against (the teacher): {error}") from error
    return {pair.name: pair.stride for pair in pairs}


class PixelRelation(NamedTuple):
    """How alike all pixels of a level are to one of them, for both models.

    `agreement` is the correlation of the two maps before any unit; 1: the same, up to a scale.
    """

    row: int
    column: int
    a: Maps  # similarities [h, w] instead of channels
    b: Maps
    agreement: float


def relate_pixels(a: Maps, b: Maps, row: int, column: int) -> PixelRelation:
    """The similarities of one pixel to every other: cosine, the mean over the map taken off."""
    point = row, column
    one, other = (
        Maps(similarity(x, point), None if phi is None else similarity(phi, point))
        for x, phi in (a, b)
    )
    u, v = (maps.x.ravel() - maps.x.mean() for maps in (one, other))
    length = np.linalg.norm(u) * np.linalg.norm(v)
    agreement = float(u @ v / length) if length > 0 else 0.0
    return PixelRelation(row, column, one, other, agreement)


class BoxRelation(NamedTuple):
    """The relation matrices of one level.

    `distance` is what L_IR is of this image and level: the mean over rows of the squares.
    """

    a: Float[np.ndarray, "n n"]
    b: Float[np.ndarray, "n n"]
    entropy: tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]  # of the rows, of log(n - 1)
    distance: float


class BoxRelations:
    """The relation matrix in the method's default form, for any map.

    psi_ij = softmax over j != i of cos(x_i - m, x_j - m) / T, x the boxes' regions, m their mean.

    Args:
        temperature: T.
        rows: boxes at most; programs are compiled for so many.
        size: bins of a region along one side.
    """

    def __init__(self, temperature: float, rows: int, size: int):
        config = distill.InstanceRelationConfig(temperature=temperature)
        unit = RelationUnit(0, config, rngs=nnx.Rngs(0))
        self._rows = rows

        def relation(
            x: Float[Array, "B h w C"],
            boxes: Float[Array, "B N 4"],
            valid: Bool[Array, "B N"],
            sizes: Any,
            stride: int,
        ) -> Float[Array, "B N N"]:
            chosen = choose_boxes(boxes, valid, None)
            wide = jnp.asarray(x).astype(jnp.float32)
            (regions,) = cut((wide,), chosen, (stride,), size, sizes)
            return unit.relation(flat(regions), chosen.valid)

        self._relation = jax.jit(relation, static_argnames="stride")

    def __call__(
        self, a: Seen, b: Seen, boxes: Float[np.ndarray, "n 4"], stride: int
    ) -> BoxRelation:
        """Args: what both made of an image; its boxes, xyxy on the canvas; the level's stride."""
        number = len(boxes)
        padded = np.zeros((1, self._rows, 4), np.float32)
        padded[0, :number] = boxes
        valid = np.arange(self._rows)[None] < number
        matrices = []
        for seen in (a, b):
            x = seen.features.maps[seen.features.spec.strides.index(stride)]
            sizes = np.array([seen.sizes], np.int32)
            psi = self._relation(x, padded, valid, sizes, stride=stride)
            matrices.append(np.asarray(psi[0, :number, :number], np.float64))
        one, other = matrices
        distance = float(((one - other) ** 2).sum(1).mean())
        return BoxRelation(one, other, (row_entropies(one), row_entropies(other)), distance)


def row_entropies(psi: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n"]:
    """Entropy of each row as a share of log(n - 1), its largest; 1 is a uniform row."""
    logs = np.log(np.where(psi > 0, psi, 1.0))
    return -(psi * logs).sum(1) / np.log(max(len(psi) - 1, 2))
