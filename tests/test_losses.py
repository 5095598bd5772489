from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drkd_jax import losses

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, (4, 5)).astype(np.float32)
TRUTH = RNG.random((4, 5)) < 0.3


@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.25), (0.0, 0.5), (1.5, 0.9)])
def test_focal_is_the_papers_formula(gamma, alpha):
    got = losses.focal(LOGITS, TRUTH, gamma, alpha)
    for at in np.ndindex(LOGITS.shape):
        p = 1 / (1 + math.exp(-float(LOGITS[at])))
        if TRUTH[at]:
            wanted = -alpha * (1 - p) ** gamma * math.log(p)
        else:
            wanted = -(1 - alpha) * p**gamma * math.log(1 - p)
        assert float(got[at]) == pytest.approx(wanted, rel=2e-5)


@pytest.mark.parametrize("logit", [-1000.0, -50.0, 0.0, 50.0, 1000.0])
@pytest.mark.parametrize("truth", [False, True])
def test_sigmoid_losses_are_finite_for_extreme_logits(logit, truth):
    for loss in (losses.focal, losses.binary_cross_entropy):
        value, slope = jax.value_and_grad(lambda x, f=loss: f(x, jnp.asarray(truth)))(logit)
        assert np.isfinite(value)
        assert np.isfinite(slope)


def test_binary_cross_entropy_is_its_formula():
    p = 1 / (1 + np.exp(-LOGITS.astype(np.float64)))
    wanted = -np.where(TRUTH, np.log(p), np.log(1 - p))
    np.testing.assert_allclose(losses.binary_cross_entropy(LOGITS, TRUTH), wanted, rtol=1e-5)


def test_cross_entropy_is_its_formula():
    labels = np.array([0, 4, 2, 2], np.int32)
    p = np.exp(LOGITS.astype(np.float64))
    p /= p.sum(1, keepdims=True)
    wanted = -np.log(p[np.arange(4), labels])
    np.testing.assert_allclose(losses.cross_entropy(LOGITS, labels), wanted, rtol=1e-5)


@pytest.mark.parametrize("beta", [1 / 9, 1.0])
def test_smooth_l1_is_its_formula(beta):
    a, b = RNG.normal(size=(2, 20, 4)).astype(np.float32)
    d = np.abs(a - b).astype(np.float64)
    assert (d < beta).any()
    assert (d > beta).any()
    wanted = np.where(d < beta, d**2 / (2 * beta), d - beta / 2).sum(1)
    np.testing.assert_allclose(losses.smooth_l1(a, b, beta), wanted, rtol=1e-6)


def test_smooth_l1_meets_l1_at_beta_0_and_is_flat_at_0():
    a, b = RNG.normal(size=(2, 3, 4)).astype(np.float32)
    np.testing.assert_allclose(losses.smooth_l1(a, b, 0), np.abs(a - b).sum(1), rtol=1e-6)
    slope = jax.grad(lambda x: losses.smooth_l1(x, x * 0 + a, 1 / 9).sum())(a)
    np.testing.assert_array_equal(slope, 0)


def test_losses_are_float32_whatever_comes_in():
    low = jnp.asarray(LOGITS, jnp.bfloat16)
    rows = low[:, :4]
    assert losses.focal(low, TRUTH).dtype == jnp.float32
    assert losses.binary_cross_entropy(low, TRUTH).dtype == jnp.float32
    assert losses.cross_entropy(low, np.zeros(4, np.int32)).dtype == jnp.float32
    assert losses.smooth_l1(rows, rows, 0).dtype == jnp.float32
