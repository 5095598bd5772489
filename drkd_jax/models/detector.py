"""What every detector is: features, losses, predictions.

Letters: B pictures, H W pixels of the canvas.
"""

from __future__ import annotations

import abc

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float, Int, Key

from drkd_jax.models.conventions import conventions
from drkd_jax.models.fpn import FPN
from drkd_jax.models.resnet import ResNet
from drkd_jax.models.settings import PyramidSettings
from drkd_jax.types import Array, Detections, Features, FeatureSpec, Targets

_is_param = nnx.filterlib.OfType(nnx.Param)


class Detector(nnx.Module, abc.ABC):
    """A ResNet, a feature pyramid, and a head that subclasses add.

    Attributes:
        spec: the pyramid's channels, strides and kinds of levels.
        num_classes: classes without the background.
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
        self.settings = settings
        self.num_classes = num_classes
        self.dtype = dtype
        self.convention = conventions(settings.convention)
        self.stride = self.convention.padding
        self.backbone = ResNet(settings.backbone, rngs=rngs, dtype=dtype)
        self.neck = FPN(self.backbone.channels, settings, rngs=rngs, dtype=dtype)

    @property
    def spec(self) -> FeatureSpec:
        """The pyramid's channels, strides and kinds of levels."""
        return self.neck.spec

    def features(
        self,
        images: Float[Array, "B H W 3"],
        picture_valid: Bool[Array, "B"] | None = None,
    ) -> Features:
        """Compute the pyramid.

        Args:
            images: normalised pictures, zeros in the padding.
            picture_valid: the pictures that count in batch statistics, in training. None, in
                evaluation, uses running statistics. Only ``norm="bn"`` heeds it; it then
                updates its ``nnx.BatchStat`` variables.

        Returns:
            Maps of the compute dtype, finest level first.
        """
        mask = None if picture_valid is None else jnp.asarray(picture_valid)
        maps = self.backbone(jnp.asarray(images, self.dtype), mask)
        return Features(self.neck(maps), self.spec)

    @abc.abstractmethod
    def losses(
        self, features: Features, targets: Targets, keys: Key[Array, "B"]
    ) -> dict[str, Float[Array, ""]]:
        """Losses by name, float32, normalised over the whole batch.

        Args:
            features: of this detector.
            targets: ground truth; pictures that are not valid count nowhere.
            keys: one random key a picture, for whatever is drawn.
        """

    @abc.abstractmethod
    def predict(self, features: Features, sizes: Int[Array, "B 2"]) -> Detections:
        """Detections of each picture in canvas pixels, clipped to the picture's own size.

        Args:
            features: of this detector.
            sizes: height and width of each picture on the canvas, pixels.
        """

    def is_trained(self, path: tuple[str | int, ...], variable: object) -> bool:
        """Whether a variable is a parameter outside the frozen stages; a filter for nnx.split."""
        if not _is_param(path, variable):
            return False
        return path[0] != "backbone" or not self.backbone.is_frozen(tuple(path[1:]))
