"""The paired difference of two arms, against scipy's intervals and a loop over the draws."""

import math
import statistics

import numpy as np
import pytest
from scipy import stats

from benchmarks.gain.paired import paired_difference


def brute_force(first: np.ndarray, second: np.ndarray, seed: int) -> tuple[float, float]:
    number, num_draws = first.shape
    chosen = np.random.default_rng(seed).integers(0, number, (num_draws, number))
    values = []
    for s in range(num_draws):
        each = [second[n, s] - first[n, s] for n in range(number)]
        mean = sum(each) / number
        drawn = sum(each[n] for n in chosen[s]) / number
        values.append(mean + math.sqrt(number / (number - 1)) * (drawn - mean))
    values.sort()
    return tuple(np.percentile(values, [2.5, 97.5]))


def test_difference_and_its_intervals():
    rng = np.random.default_rng(3)
    first, second = rng.normal(0.3, 0.01, (2, 5))
    draws = [side[:, None] + rng.normal(0, 0.02, (5, 200)) for side in (first, second)]
    found = paired_difference(first, second, *draws, seed=7)
    each = [b - a for a, b in zip(first, second, strict=True)]
    assert found.each == pytest.approx(each, abs=1e-15)
    assert found.mean == pytest.approx(sum(each) / 5, abs=1e-15)
    assert found.sd == pytest.approx(statistics.stdev(each), rel=1e-12)
    wanted = stats.ttest_rel(second, first).confidence_interval(0.95)
    assert (found.t_low, found.t_high) == pytest.approx((wanted.low, wanted.high), abs=1e-12)
    assert (found.low, found.high) == pytest.approx(brute_force(*draws, seed=7), abs=1e-12)


def test_two_seeds_have_an_interval_over_seeds():
    found = paired_difference(np.zeros(2), np.array([0.1, 0.3]), *np.zeros((2, 2, 4)))
    wanted = stats.ttest_1samp([0.1, 0.3], 0).confidence_interval(0.95)
    assert (found.t_low, found.t_high) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


def test_seeds_spread_the_interval_as_their_mean_does():
    """Without any noise from the images, it is 1.96 standard errors of the mean over seeds."""
    each = np.random.default_rng(0).normal(0, 1, 40)
    zeros = np.zeros((40, 4000))
    found = paired_difference(np.zeros(40), each, zeros, zeros + each[:, None])
    error = each.std(ddof=1) / math.sqrt(40)
    assert (found.high - found.low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.05)


def test_one_seed_has_an_interval_over_images_only():
    draws = np.random.default_rng(0).normal(0.02, 0.01, (1, 300))
    found = paired_difference(np.array([0.3]), np.array([0.32]), np.zeros((1, 300)), draws)
    assert math.isnan(found.sd)
    assert math.isnan(found.t_low)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(draws, [2.5, 97.5])))
    assert not found.above_zero


def test_above_zero_wants_both_intervals():
    near, zeros, none = np.full((3, 50), 0.01), np.zeros((3, 50)), np.zeros(3)
    assert paired_difference(none, np.array([0.010, 0.011, 0.009]), zeros, near).above_zero
    wide = paired_difference(none, np.array([0.001, 0.03, 0.001]), zeros, near)
    assert wide.low > 0
    assert not wide.above_zero
    unsure = paired_difference(none, np.array([0.010, 0.011, 0.009]), zeros, near - 0.02)
    assert unsure.t_low > 0
    assert not unsure.above_zero
