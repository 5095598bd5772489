"""Differences of AP between runs that share their seeds and images, with intervals.

Letters: S draws, N seeds.

A student with distillation is compared with the plain student of the same seed, on the same
images. Two things are random: the seeds and the validation images. The t-interval covers only
the seeds; the bootstrap resamples both, with the same images for every run.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jaxtyping import Float

from drkd_jax.report.paired import interval, t_reach


@dataclasses.dataclass(frozen=True)
class PairedDifference:
    """A mean difference over seeds and two 95 % intervals around it, in the unit of the scores.

    Attributes:
        mean: Mean of second minus first over the N seeds.
        sd: Standard deviation of the differences over the seeds; NaN for one seed.
        t_low: Lower end of Student's interval over the seeds; NaN for one seed.
        t_high: Its upper end.
        low: 2.5 % of the draws of seeds and images are below this.
        high: 2.5 % are above this.
        each: The N differences.
    """

    mean: float
    sd: float
    t_low: float
    t_high: float
    low: float
    high: float
    each: tuple[float, ...]

    @property
    def above_zero(self) -> bool:
        """Whether both intervals are above 0."""
        return self.t_low > 0.0 and self.low > 0.0


def paired_difference(
    first: Float[np.ndarray, "N"],
    second: Float[np.ndarray, "N"],
    first_draws: Float[np.ndarray, "N S"],
    second_draws: Float[np.ndarray, "N S"],
    seed: int = 0,
) -> PairedDifference:
    """Compares two arms seed by seed.

    Args:
        first: Scores of the reference arm, one per seed.
        second: Scores of the other arm, in the same order of seeds.
        first_draws: `resampled_scores` of the first arm's runs.
        second_draws: Of the second arm's runs, on the same draws.
        seed: Seed of the draws of seeds.

    Returns:
        The mean and its intervals. In each draw of the bootstrap the images are one draw for all
        runs, and N seeds are drawn with replacement. Drawing N of N seeds makes their mean spread
        by (N - 1) / N of its variance; deviations are stretched by the root of the inverse.
    """
    each = second - first
    number = len(each)
    differences = second_draws - first_draws
    centre = differences.mean(axis=0)
    resampled, sd = centre, math.nan
    if number > 1:
        rng = np.random.default_rng(seed)
        drawn = rng.integers(0, number, (differences.shape[1], number))
        means = np.take_along_axis(differences.T, drawn, axis=1).mean(axis=1)
        resampled = centre + math.sqrt(number / (number - 1)) * (means - centre)
        sd = float(each.std(ddof=1))
    low, high = interval(resampled)
    mean, reach = float(each.mean()), t_reach(each)
    return PairedDifference(
        mean, sd, mean - reach, mean + reach, low, high, tuple(float(value) for value in each)
    )
