"""Constant norms folded into their convolutions in training: the same function."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from drkd_jax.models import resnet
from drkd_jax.models.backbone_settings import BackboneSettings
from drkd_jax.ops.platform import tracing_for

RNG = np.random.default_rng(0)
X = np.abs(RNG.normal(size=(2, 8, 6, 16)))


def block(settings, dtype):
    """A block of stride 2 with its own shortcut, and arrays like those of a trained one."""
    made = resnet.Block(
        *(16, 8, 2, settings), deformable=bool(settings.dcn), rngs=nnx.Rngs(0), dtype=dtype
    )
    graph, state = nnx.split(made)
    spread = {"scale": (0.5, 1.5), "var": (0.5, 1.5), "mean": (-0.5, 0.5), "bias": (-0.5, 0.5)}
    drawn = [
        (path, jnp.asarray(RNG.uniform(*spread.get(path[-1], (-0.3, 0.3)), leaf.shape)))
        for path, leaf in nnx.to_flat_state(nnx.as_pure(state))
    ]
    return graph, nnx.from_flat_state(drawn)


def plain(layer, norm, x, image_valid):
    """The convolution, then its norm."""
    return norm(layer(x), image_valid)


@pytest.mark.parametrize(
    "changes",
    [
        {"depth": 50},
        {"depth": 18},
        {"depth": 50, "groups": 2, "group_width": 64, "style": "caffe", "eps": 0.0},
        {"depth": 50, "dcn": "v2"},
    ],
)
def test_value_and_gradients_are_those_of_convolution_and_norm(monkeypatch, changes):
    settings = BackboneSettings(norm="frozen_bn", width=8, **changes)
    with jax.enable_x64(True):
        graph, state = block(settings, jnp.dtype(jnp.float64))

        def total(state, x):
            out = nnx.merge(graph, state, copy=True)(x, None)
            return (out * jnp.cos(jnp.arange(out.size).reshape(out.shape))).sum()

        def found():
            with tracing_for("gpu"):  # a CPU does not fold
                return jax.jit(jax.value_and_grad(lambda s, x: total(s, x), (0, 1)))(state, X)

        folded = found()
        monkeypatch.setattr(resnet, "conv_norm", plain)
        wanted = found()
    for got, want in zip(jax.tree.leaves(folded), jax.tree.leaves(wanted), strict=True):
        assert got.dtype == jnp.float64
        np.testing.assert_allclose(got, want, rtol=0, atol=4e-14 * np.abs(want).max())
    assert np.abs(wanted[1][0]["norms"][1]["scale"]).max() > 0.1  # scale and bias are trained


def test_only_outputs_of_relus_are_kept_for_the_gradient():
    graph, state = block(BackboneSettings(norm="frozen_bn", width=8), jnp.dtype(jnp.float32))
    x = jnp.asarray(X, jnp.float32)
    with tracing_for("gpu"):
        _, pull = jax.vjp(lambda state: nnx.merge(graph, state, copy=True)(x, None), state)
    maps = [leaf for leaf in jax.tree.leaves(pull) if leaf.ndim == 4 and leaf.shape[0] == 2]
    assert len(maps) >= 4
    assert all(float(leaf.min()) >= 0 for leaf in maps)


def test_bfloat16_rounds_the_folded_kernel_once():
    settings = BackboneSettings(norm="frozen_bn", width=8)
    graph, state = block(settings, jnp.dtype(jnp.float32))
    low, _ = block(settings, jnp.dtype(jnp.bfloat16))
    exact = nnx.merge(graph, state, copy=True)(jnp.asarray(X, jnp.float32), None)
    with tracing_for("gpu"):
        got = nnx.merge(low, state, copy=True)(jnp.asarray(X, jnp.bfloat16), None)
    assert got.dtype == jnp.bfloat16
    error = np.linalg.norm(np.asarray(got, np.float32) - exact) / np.linalg.norm(exact)
    assert error < 0.02
