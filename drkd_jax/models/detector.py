"""The interface of every detector: features, losses, predictions.

Letters: B images, H W pixels of the canvas.
"""

from __future__ import annotations

import abc
from functools import partial

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int, Key

from drkd_jax.errors import UserError
from drkd_jax.models.feature_extractor import FeatureExtractor
from drkd_jax.models.settings import PyramidSettings
from drkd_jax.types import Array, Detections, Features, Targets, Unsuppressed

_is_param = nnx.filterlib.OfType(nnx.Param)


class Detector(FeatureExtractor, abc.ABC):
    """A ResNet, a feature pyramid, and a head that subclasses add.

    Attributes:
        spec: the pyramid's channels, strides and kinds of levels.
        num_classes: classes of the data, without the background.
        head_classes: classes of the head, without the background.
        class_ids: the head's class for each class of the data.
        stride: sides of a canvas must be multiples of this.
    """

    def __init__(
        self,
        settings: PyramidSettings,
        num_classes: int,
        *,
        rngs: nnx.Rngs,
        dtype: jnp.dtype,
    ):
        super().__init__(settings, rngs=rngs, dtype=dtype)
        self.num_classes = num_classes
        self.head_classes = settings.head_classes or num_classes
        self.class_ids = settings.class_ids or tuple(range(num_classes))
        if len(self.class_ids) != num_classes or max(self.class_ids) >= self.head_classes:
            raise UserError(
                f"class_ids must name one of {self.head_classes} head_classes for each of the "
                f"data's {num_classes} classes"
            )

    @abc.abstractmethod
    def losses(
        self, features: Features, targets: Targets, keys: Key[Array, "B"]
    ) -> dict[str, Float[Array, ""]]:
        """Losses by name, float32, normalised over the whole batch.

        Args:
            features: of this detector.
            targets: ground truth; invalid images are ignored.
            keys: one random key per image, for random sampling.
        """

    @abc.abstractmethod
    def predict(self, features: Features, sizes: Int[Array, "B 2"]) -> Detections:
        """Detections of each image in canvas pixels, clipped to the image's own size.

        Args:
            features: of this detector.
            sizes: height and width of each image on the canvas, pixels.
        """

    @abc.abstractmethod
    def unsuppressed(self, features: Features, sizes: Int[Array, "B 2"]) -> Unsuppressed:
        """Decoded boxes and class scores before `predict` filters them.

        A two-stage detector's regions are already filtered, since its second stage starts there.

        Args:
            features: of this detector.
            sizes: height and width of each image on the canvas, pixels.
        """

    def to_head(self, targets: Targets) -> Targets:
        """Targets with the class numbers of the head."""
        return targets._replace(labels=jnp.asarray(self.class_ids, jnp.int32)[targets.labels])

    def from_head(self, found: Detections) -> Detections:
        """Detections with the class numbers of the data, without classes that the data lacks."""
        of_head = np.full(self.head_classes, -1, np.int32)
        of_head[list(self.class_ids)] = np.arange(self.num_classes)
        labels = jnp.asarray(of_head)[found.labels]
        valid = found.valid & (labels >= 0)
        order = jnp.argsort(~valid, axis=1, stable=True)
        # The default mode fills in a value for rows out of range, which ONNX lacks for flags.
        take = partial(jnp.take_along_axis, axis=1, mode="promise_in_bounds")
        return Detections(
            take(found.boxes, order[..., None]),
            take(jnp.where(valid, found.scores, 0.0), order),
            take(jnp.maximum(labels, 0), order),
            take(valid, order),
        )

    def classes_from_head(
        self, boxes: Float[Array, "B N D 4"], scores: Float[Array, "B N K"]
    ) -> tuple[Float[Array, "B N D2 4"], Float[Array, "B N K2"]]:
        """Selects the data's classes from boxes and scores of all the head's classes."""
        ids = list(self.class_ids)
        return (boxes if boxes.shape[2] == 1 else boxes[:, :, ids]), scores[:, :, ids]

    def is_trained(self, path: tuple[str | int, ...], variable: object) -> bool:
        """Whether a variable is a parameter outside the frozen stages; a filter for nnx.split.

        Norms of pretrained weights are excluded if the convention does not train them.
        """
        if not _is_param(path, variable):
            return False
        if path[0] != "backbone":
            return True
        kept = self.settings.backbone.norm == "frozen_bn" and not self.convention.train_norms
        if kept and any("norm" in str(part) for part in path):
            return False
        return not self.backbone.is_frozen(tuple(path[1:]))
