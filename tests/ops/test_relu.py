"""The ReLU whose gradient reads its output."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drkd_jax.ops.platform import tracing_for
from drkd_jax.ops.relu import relu


@pytest.mark.parametrize("where", ["cpu", "gpu"])
def test_value_and_gradient_are_the_plain_ones(where):
    edge = [0.0, -0.0, 5e-324, -5e-324, np.inf, -np.inf]
    with jax.enable_x64(True), tracing_for(where):
        x = jnp.asarray(np.concatenate([np.random.default_rng(0).normal(size=50), edge]))
        got, pull = jax.vjp(relu, x)
        np.testing.assert_array_equal(got, np.where(x > 0, x, 0.0))
        np.testing.assert_array_equal(pull(x + 2.0)[0], np.where(x > 0, x + 2.0, 0.0))
    low = jnp.asarray([-1.0, 2.0], jnp.bfloat16)
    with tracing_for(where):
        (slope,) = jax.vjp(relu, low)[1](low)
    assert slope.dtype == jnp.bfloat16


def test_between_two_layers_nothing_is_kept_but_what_the_second_keeps():
    x = jnp.asarray(np.random.default_rng(1).normal(size=(8, 4)), jnp.float32)
    weights = jnp.ones((4, 4)), jnp.ones((4, 4))

    def layers(activation):
        def run(first, second):
            return activation(x @ first) @ second

        return jax.tree.leaves(jax.vjp(run, *weights)[1])

    with tracing_for("gpu"):
        kept = layers(relu)
    maps = [leaf for leaf in kept if leaf.shape == x.shape]
    assert len(maps) == 2  # x, and the output of the ReLU
    assert not any(np.array_equal(leaf, x @ weights[0]) for leaf in maps)
    assert len(layers(jax.nn.relu)) > len(kept)  # what is looked at here does tell them apart
