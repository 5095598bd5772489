"""PKD: each channel of the student should correlate with the teacher's over the pixels.

    sum_levels  mean over pixels and channels of  1/2 (z(t) - z(f(s)))^2

z(x) = (x - mean) / (std + 1e-6) of each channel over the pixels of the whole batch, so a level's
loss is 1 - r up to order 1/n, with r the mean Pearson correlation of the channels: it does not
depend on a channel's scale and offset.

Letters: B images, h w a map, C channels.

Source: Cao et al. 2022, "PKD: General Distillation Framework for Object Detectors via Pearson
Correlation Coefficient" (arXiv 2207.02039); the std over n - 1 and the 1e-6 are those of the
authors' mmrazor, mmrazor/models/losses/pkd_loss.py. Statistics there are over the images of one
device, here over those of all devices.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Float

from drkd_jax.distill.baselines.map_term import LevelLoss, MapTerm, MapTermConfig, Seen
from drkd_jax.distill.layers import (
    BoolMap,
    FloatMap,
    LinearMap,
    accumulator,
    half_mean_square,
    safe_ratio,
    safe_sqrt,
)
from drkd_jax.types import Array

EPSILON = 1e-6


def standardized(x: FloatMap, mask: BoolMap) -> FloatMap:
    """Each channel with mean 0 and standard deviation 1 over the valid pixels.

    Args:
        x: a map.
        mask: the valid pixels.

    Returns:
        In float32 at least; 0 at invalid pixels. A constant channel gives its rounding error
        divided by `EPSILON`, as in the authors' code, which need not be small.
    """
    off, _, std = statistics(x, mask)
    return off / (std + EPSILON)


def statistics(x: FloatMap, mask: BoolMap) -> tuple[FloatMap, Float[Array, "C"], Float[Array, "C"]]:
    """A map minus each channel's mean, that mean, and the standard deviation over n - 1.

    Args:
        x: a map.
        mask: the valid pixels.

    Returns:
        (x - mean, mean, deviation), in float32 at least; the first is 0 at invalid pixels, and all
        are 0 if no pixel is valid.
    """
    inside = mask[..., None]
    count = mask.sum()
    x = jnp.where(inside, x.astype(accumulator(x)), 0)
    mean = safe_ratio(x.sum((0, 1, 2)), count)
    off = jnp.where(inside, x - mean, 0)
    return off, mean, safe_sqrt(safe_ratio((off * off).sum((0, 1, 2)), count - 1))


class PKD(MapTerm):
    """The term over all paired levels."""

    layer = LinearMap

    def level_loss(
        self, level: int, s: FloatMap, t: FloatMap, mask: BoolMap, seen: Seen
    ) -> LevelLoss:
        """Half the mean square between the standardised maps; 0 without valid pixels."""
        return half_mean_square(standardized(s, mask), standardized(t, mask), mask), {}


@dataclasses.dataclass(frozen=True)
class PKDConfig(MapTermConfig):
    """PKD, the Pearson correlation of the channels.

    Attributes:
        weight: what the loss is multiplied by in the total; 0 leaves it out. The authors': 6 for
            two-stage detectors, 10 for RetinaNet.
    """

    term = PKD
