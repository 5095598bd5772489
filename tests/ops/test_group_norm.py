import jax
import jax.numpy as jnp
import numpy as np

from drkd_jax.ops.group_norm import group_norm

GROUPS, EPSILON = 3, 1e-5


def plainly(x, scale, bias):
    """Group norm as in its paper, with automatic gradients."""
    B, h, w, C = x.shape
    parts = x.reshape(B, h, w, GROUPS, C // GROUPS)
    mean = parts.mean(axis=(1, 2, 4), keepdims=True)
    variance = parts.var(axis=(1, 2, 4), keepdims=True)
    return ((parts - mean) / jnp.sqrt(variance + EPSILON)).reshape(x.shape) * scale + bias


def test_values_and_gradients_are_those_of_the_formula():
    rng = np.random.default_rng(0)
    x, weights = rng.normal(2.0, 3.0, (2, 3, 5, 4, 6))
    x[1, ..., :2] = 7.0  # a group without variance
    scale, bias = rng.normal(size=(2, 6))

    @jax.jit
    def both(x, scale, bias):
        results = []
        for form in (lambda *a: group_norm(*a, GROUPS, EPSILON), plainly):
            out, backward = jax.vjp(form, x, scale, bias)
            results.append((out, *backward(jnp.asarray(weights))))
        return results

    with jax.enable_x64(True):
        ours, wanted = both(x, scale, bias)
    for a, b in zip(ours, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-13 * np.abs(b).max())


def test_sums_of_bfloat16_maps_run_in_float32():
    x = jnp.asarray(np.random.default_rng(1).normal(size=(1, 64, 64, 3)) + 8, jnp.bfloat16)
    ones, zeros = jnp.ones(3), jnp.zeros(3)
    got, backward = jax.vjp(lambda x: group_norm(x, ones, zeros, GROUPS, EPSILON), x)
    assert got.dtype == x.dtype == backward(got)[0].dtype
    wanted = plainly(x.astype(jnp.float32), ones, zeros)
    np.testing.assert_allclose(got.astype(jnp.float32), wanted, atol=2**-7)
