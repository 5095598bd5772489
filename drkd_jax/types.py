"""The data passed between the packages: a batch, its targets, feature maps, detections.

Letters: B images, H W pixels of the canvas, G padded ground truths, N detections,
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

# jaxtyping checks shapes and dtypes in the tests. A type checker cannot check them, and would only
# complain wherever a NumPy constant meets a traced array.
if TYPE_CHECKING:
    Array = Any
else:
    Array = jax.Array | np.ndarray


class Batch(NamedTuple):
    """Images as the loader returns them: resized, padded, not yet mirrored.

    A padding image, which only fills up the last batch, has ``image_valid`` False, ``sizes``
    (0, 0) and no valid box. ``index`` is the image's position in its source, from which its id
    and its random numbers are found; it is -1 for a padding image.
    """

    # RGB, 0..255; the image is in the top left corner, zeros elsewhere. float32 if the resize
    # rule does not round interpolated values.
    images: UInt8[Array, "B H W 3"] | Float[Array, "B H W 3"]
    sizes: Int[Array, "B 2"]  # height, width of the image on the canvas, pixels
    flip: Bool[Array, "B"]  # to be mirrored left to right on the device
    boxes: Float[Array, "B G 4"]  # before mirroring
    labels: Int[Array, "B G"]  # 0..K-1
    valid: Bool[Array, "B G"]
    image_valid: Bool[Array, "B"]
    index: Int[Array, "B"]  # type: ignore[assignment]
    scale: Float[Array, "B 2"]  # canvas pixels per source pixel, along x and y


class Targets(NamedTuple):
    """The data of a batch that the losses need, after mirroring."""

    sizes: Int[Array, "B 2"]
    boxes: Float[Array, "B G 4"]
    labels: Int[Array, "B G"]
    valid: Bool[Array, "B G"]
    image_valid: Bool[Array, "B"]


@dataclasses.dataclass(frozen=True)
class FeatureSpec:
    """The shape of a detector's pyramid, known before anything is computed.

    Attributes:
        channels: of each level, finest first.
        strides: canvas pixels per map pixel of each level.
        kinds: how each level is made, since the same stride can mean different things: "lateral"
            (P2..P5), "pool" (every second pixel of P5), "conv_c5", "conv_p5" (stride 2
            convolutions of C5 or of the level below). None: unknown, levels match by stride alone.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    kinds: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Converts the values to tuples.

        Raises:
            UserError: there is not one number of channels, or one kind, for each stride.
        """
        for name in ("strides", "channels", "kinds"):
            values = getattr(self, name)
            if name == "kinds" and values is None:
                continue
            if not isinstance(values, (tuple, list)) or len(values) != len(self.strides):
                raise UserError(
                    f"FeatureSpec.{name} = {values!r}: a tuple with one entry per level, as "
                    "channels = (64, 64) beside strides = (8, 16)"
                )
            object.__setattr__(self, name, tuple(values))

    def __len__(self) -> int:
        return len(self.strides)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Features:
    """FPN maps of a batch, finest first, with the spec by which distillation pairs them.

    ``maps`` holds one float ``[B, h, w, C]`` per level. Its annotation is less specific, since JAX
    also builds this class with shapes or shardings in place of arrays.
    """

    maps: tuple[Any, ...]
    spec: FeatureSpec = dataclasses.field(metadata={"static": True})


class Responses(NamedTuple):
    """The head outputs of two dense detectors for a batch, for distillers of responses.

    A head has two branches, classes and boxes, whose layers all levels share. ``student`` and
    ``teacher`` hold a pair of maps [B, h, w, C] (classes, boxes) for each level of the side's
    pyramid, finest first: the branches' outputs after some layers, before the activation.
    """

    student: tuple[tuple[Any, Any], ...]
    teacher: tuple[tuple[Any, Any], ...]
    # Applies the teacher's remaining layers, activation first, to one level's pair; returns class
    # logits [B, h w A, K] and box deltas [B, h w A, 4] of A anchors per pixel, ordered by row,
    # column, anchor.
    head: Callable[[Any, Any], tuple[Any, Any]]


class Detections(NamedTuple):
    """The best N boxes of each image, by descending score; further rows are not ``valid``."""

    boxes: Float[Array, "B N 4"]
    scores: Float[Array, "B N"]
    labels: Int[Array, "B N"]
    valid: Bool[Array, "B N"]


class Unsuppressed(NamedTuple):
    """All boxes of each image with the scores of all classes, before any filtering.

    K classes of the data, N anchors or regions, D boxes of each: K (one per class) or 1 for all.
    """

    boxes: Float[Array, "B N D 4"]  # clipped to their images
    scores: Float[Array, "B N K"]
    valid: Bool[Array, "B N"]
