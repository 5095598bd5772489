"""What travels between the packages: a batch, its targets, feature maps, detections.

Letters: B pictures, H W pixels of the canvas, G padded ground truths, N detections,
L pyramid levels, h w C one feature map.

Boxes are always ``xyxy``, absolute pixels of the padded canvas, float32. Rows that exist only
to keep shapes fixed are marked in a bool ``valid`` array, never by a sentinel value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from drkd_jax.errors import UserError

# Shapes and dtypes are checked where a test runs, by jaxtyping. A type checker sees neither, and
# would only complain wherever a NumPy constant meets a traced array.
if TYPE_CHECKING:
    Array = Any
else:
    Array = jax.Array | np.ndarray


class Batch(NamedTuple):
    """Pictures as the loader hands them over: resized, padded, not yet mirrored.

    A picture that only fills up the last batch has ``picture_valid`` False, ``sizes`` (0, 0) and
    no valid box. ``index`` is the picture's position in its source, the key to its id and to its
    random numbers; it is -1 for a filling picture.
    """

    # RGB, 0..255; the picture sits in the top left corner, zeros elsewhere. Floats (float32) where
    # the resize rule keeps what it interpolates.
    images: UInt8[Array, "B H W 3"] | Float[Array, "B H W 3"]
    sizes: Int[Array, "B 2"]  # height, width of the picture on the canvas, pixels
    flip: Bool[Array, "B"]  # to be mirrored left to right on the device
    boxes: Float[Array, "B G 4"]  # before mirroring
    labels: Int[Array, "B G"]  # 0..K-1
    valid: Bool[Array, "B G"]
    picture_valid: Bool[Array, "B"]
    index: Int[Array, "B"]  # type: ignore[assignment]
    scale: Float[Array, "B 2"]  # canvas pixels per source pixel, along x and y


class Targets(NamedTuple):
    """What the losses need to know of a batch, after mirroring."""

    sizes: Int[Array, "B 2"]
    boxes: Float[Array, "B G 4"]
    labels: Int[Array, "B G"]
    valid: Bool[Array, "B G"]
    picture_valid: Bool[Array, "B"]


@dataclasses.dataclass(frozen=True)
class FeatureSpec:
    """The pyramid a detector promises, known before anything is computed.

    Attributes:
        channels: of each level, finest first.
        strides: canvas pixels per map pixel of each level.
        kinds: how each level is made, since the same stride can mean different things: "lateral"
            (P2..P5), "pool" (every second pixel of P5), "conv_c5", "conv_p5" (stride 2
            convolutions of C5 or of the level below). None: not said, the stride alone counts.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    kinds: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Writes out tuples.

        Raises:
            UserError: not one number of channels, or one kind, for each stride.
        """
        for name in ("strides", "channels", "kinds"):
            values = getattr(self, name)
            if name == "kinds" and values is None:
                continue
            if not isinstance(values, (tuple, list)) or len(values) != len(self.strides):
                raise UserError(
                    f"FeatureSpec.{name} = {values!r}: a tuple with one entry a level, as channels "
                    "= (64, 64) beside strides = (8, 16)"
                )
            object.__setattr__(self, name, tuple(values))

    def __len__(self) -> int:
        return len(self.strides)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Features:
    """FPN maps of a batch, finest first, with the facts that distillation pairs them by.

    ``maps`` holds one float ``[B, h, w, C]`` a level. Its annotation says less, since JAX also
    rebuilds this class around shapes and shardings in the place of arrays.
    """

    maps: tuple[Any, ...]
    spec: FeatureSpec = dataclasses.field(metadata={"static": True})


class Responses(NamedTuple):
    """What two dense detectors' heads know of a batch, for a distiller of responses.

    A head has two branches, classes and boxes, whose layers all levels share. ``student`` and
    ``teacher`` hold a pair of maps [B, h, w, C] (classes, boxes) for each level of the side's
    pyramid, finest first: the branches' outputs after some layers, not activated.
    """

    student: tuple[tuple[Any, Any], ...]
    teacher: tuple[tuple[Any, Any], ...]
    # The teacher's layers after that, activation first, of one level's pair: class logits
    # [B, h w A, K] and box deltas [B, h w A, 4] of A anchors a pixel, by row, column, anchor.
    head: Callable[[Any, Any], tuple[Any, Any]]


class Detections(NamedTuple):
    """The best N boxes of each picture, by falling score; rows past the last are not ``valid``."""

    boxes: Float[Array, "B N 4"]
    scores: Float[Array, "B N"]
    labels: Int[Array, "B N"]
    valid: Bool[Array, "B N"]


class Unsuppressed(NamedTuple):
    """All boxes of each picture with the scores of all classes, before any is left out.

    K classes of the data, N anchors or regions, D boxes of each: K, one a class, or 1 for all.
    """

    boxes: Float[Array, "B N D 4"]  # clipped to their pictures
    scores: Float[Array, "B N K"]
    valid: Bool[Array, "B N"]
