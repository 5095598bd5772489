"""CWD: each channel of the student should be active at the same places as the teacher's.

    sum_levels  tau^2 / (N C)  sum over images and channels of  KL( p(t) || p(f(s)) )

p(x) = softmax of x / tau over the pixels of an image, for each channel; N is the number of valid
images. If the teacher's maps are divided by their standard deviation, tau is in that unit too.

Letters: B images, h w a map, P its pixels, C channels.

Source: Shu et al. 2021, "Channel-wise Knowledge Distillation for Dense Prediction" (arXiv
2011.13256); the normaliser is that of SemSeg-distill/utils/criterion.py in the authors'
irfanICMLL/TorchDistiller, and of mmrazor, mmrazor/models/losses/cwd.py.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Float

from drkd_jax.distill.baselines.map_term import LevelLoss, MapTerm, MapTermConfig, Seen
from drkd_jax.distill.layers import (
    BoolMap,
    FloatMap,
    LinearMap,
    accumulator,
    count_images,
    safe_ratio,
)
from drkd_jax.distill.setting_checks import positive
from drkd_jax.types import Array


def log_distribution(x: FloatMap, mask: BoolMap, temperature: float | int) -> Float[Array, "B P C"]:
    """Logarithm of each channel's softmax over the valid pixels of its image.

    Args:
        x: a map.
        mask: the valid pixels.
        temperature: what x is divided by.

    Returns:
        In float32 at least; meaningless, but finite, at invalid pixels.
    """
    # A finite floor: an image without valid pixels would otherwise compute inf - inf.
    floor = jnp.where(mask[..., None], x.astype(accumulator(x)) / temperature, -1e30)
    return jax.nn.log_softmax(floor.reshape(x.shape[0], -1, x.shape[-1]), axis=1)


class CWD(MapTerm):
    """The term over all paired levels."""

    config: CWDConfig
    layer = LinearMap

    def level_loss(
        self, level: int, s: FloatMap, t: FloatMap, mask: BoolMap, seen: Seen
    ) -> LevelLoss:
        """Mean divergence over images and channels, times tau^2; 0 without an image."""
        tau = self.config.temperature
        of_teacher, of_student = (log_distribution(x, mask, tau) for x in (t, s))
        inside = mask.reshape(mask.shape[0], -1, 1)
        parts = jnp.exp(of_teacher) * (of_teacher - of_student)
        divergence = jnp.where(inside, parts, 0).sum()
        return tau**2 * safe_ratio(divergence, count_images(mask) * t.shape[-1]), {}


@dataclasses.dataclass(frozen=True)
class CWDConfig(MapTermConfig):
    """CWD, channel-wise distributions over the pixels.

    Attributes:
        weight: what the loss is multiplied by in the total; 0 leaves it out. mmrazor's for
            Faster R-CNN and RetinaNet, with temperature 1: 10.
        temperature: tau.
    """

    temperature: float | int = 1.0
    term = CWD

    def __post_init__(self) -> None:
        positive("cwd.temperature", self.temperature)
