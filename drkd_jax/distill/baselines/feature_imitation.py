"""Feature imitation: each pixel of the student's maps should equal the teacher's.

    1/2 sum_levels  mean over pixels and channels of (t - f(s))^2

Letters: B images, h w a map, C channels.

Source: Romero et al. 2015, "FitNets: Hints for Thin Deep Nets" (arXiv 1412.6550), equation 3,
which always has a regressor f, even for equal channels; a mean in place of the paper's sum makes
the loss independent of the canvas size.
"""

from __future__ import annotations

import dataclasses

from drkd_jax.distill.baselines.map_term import LevelLoss, MapTerm, MapTermConfig, Seen
from drkd_jax.distill.layers import BoolMap, FloatMap, half_mean_square


class FeatureImitation(MapTerm):
    """The term over all paired levels."""

    always = True

    def level_loss(
        self, level: int, s: FloatMap, t: FloatMap, mask: BoolMap, seen: Seen
    ) -> LevelLoss:
        """Half the mean square of t - s over valid pixels and channels; 0 without any."""
        return half_mean_square(s, t, mask), {}


@dataclasses.dataclass(frozen=True)
class FeatureImitationConfig(MapTermConfig):
    """Feature imitation over the whole map.

    Attributes:
        weight: what the loss is multiplied by in the total; 0 leaves it out. There is no author's
            value; while nothing of the teacher's maps is explained, a level's loss is 1/2, so with
            0.25 the term starts at the size of DRKD's own terms.
    """

    term = FeatureImitation
