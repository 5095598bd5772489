"""The part of a detector that a teacher needs: backbone and neck.

Letters: B images, H W pixels of the canvas.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float

from drkd_jax.models.conventions import conventions, with_own
from drkd_jax.models.fpn import FPN
from drkd_jax.models.resnet import ResNet
from drkd_jax.models.settings import PyramidSettings
from drkd_jax.types import Array, Features, FeatureSpec


class FeatureExtractor(nnx.Module):
    """A ResNet and a feature pyramid.

    Attributes:
        settings: the settings that it was built from.
        stride: sides of a canvas must be multiples of this.
    """

    def __init__(self, settings: PyramidSettings, *, rngs: nnx.Rngs, dtype: jnp.dtype):
        self.settings = settings
        self.dtype = dtype
        self.convention = with_own(conventions(settings.convention), settings)
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
        image_valid: Bool[Array, "B"] | None = None,
    ) -> Features:
        """Compute the pyramid.

        Args:
            images: normalised images, zeros in the padding.
            image_valid: in training, the images that contribute to batch statistics; None (in
                evaluation) uses running statistics. Only ``norm="bn"`` uses it, and in training
                updates its ``nnx.BatchStat`` variables.

        Returns:
            Maps of the compute dtype, finest level first.
        """
        mask = None if image_valid is None else jnp.asarray(image_valid)
        maps = self.backbone(jnp.asarray(images, self.dtype), mask)
        return Features(self.neck(maps), self.spec)


def strip(detector: FeatureExtractor) -> FeatureExtractor:
    """The same backbone and neck without the heads, which distillation does not need.

    Args:
        detector: any detector, with or without values (`build.abstract_detector`). The result
            shares its variables.
    """
    bare = nnx.eval_shape(
        lambda: FeatureExtractor(detector.settings, rngs=nnx.Rngs(0), dtype=detector.dtype)
    )
    bare.backbone, bare.neck = detector.backbone, detector.neck
    return bare
