from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drkd_jax.ops import top_k as stages
from drkd_jax.ops.platform import tracing_for


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(stages, "_BLOCK", 16)


def in_stages(x, k):
    with tracing_for("gpu"):
        return jax.jit(lambda x: stages.top_k(x, k))(x)


@pytest.mark.parametrize("length", [257, 1000])
@pytest.mark.parametrize("k", [1, 7, 60])
def test_same_values_and_rows(length, k):
    # Few different numbers, so that nearly all of them are tied.
    x = np.random.default_rng(length + k).integers(0, 9, (2, 3, length)).astype(np.float32)
    for ours, theirs in zip(in_stages(x, k), jax.lax.top_k(jnp.asarray(x), k), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_lowest_numbers_that_are_there_come_before_padding():
    x = np.full((1, 777), -np.inf, np.float32)  # blocks are of 256, and fewer than three are none
    x[0, 300] = 1
    best, row = in_stages(x, 60)
    assert row.tolist() == [[300, *range(59)]]
    assert best[0, 0] == 1


def test_long_rows_are_not_sorted_whole():
    def lengths(platform):
        with tracing_for(platform):
            found = jax.make_jaxpr(lambda x: stages.top_k(x, 3))(jnp.zeros((2, 1000)))
        inside = [e for e in found.eqns if e.primitive.name == "top_k"]
        inside += [
            e
            for outer in found.eqns
            if "jaxpr" in outer.params
            for e in outer.params["jaxpr"].jaxpr.eqns
            if e.primitive.name == "top_k"
        ]
        return [e.invars[0].aval.shape[-1] for e in inside]

    assert lengths("cpu") == [1000]
    assert max(lengths("gpu")) < 100
