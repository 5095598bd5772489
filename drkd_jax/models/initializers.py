"""Initial values drawn by NumPy: they depend only on the key, and nothing has to be compiled.

A ResNet has some thirty kernel shapes; with `jax.random` each needs its own program, which takes 15
seconds on a laptop, for a network that may train in minutes. Under tracing (`nnx.eval_shape`) the
key has no value, so the initial values are zeros of the right shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Initializer = Callable[..., Any]
Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def normal(std: float) -> Initializer:
    """Normal values around 0."""
    return _drawn(lambda rng, shape: rng.standard_normal(shape, np.float32) * np.float32(std))


def kaiming_normal() -> Initializer:
    """Normal values of variance 2 / (outputs x kernel area), for ReLU networks.

    Source: He et al. 2015, "Delving Deep into Rectifiers", the backward form.
    """

    def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        fan_out = math.prod(shape[:-2]) * shape[-1]
        return rng.standard_normal(shape, np.float32) * np.float32(math.sqrt(2 / fan_out))

    return _drawn(draw)


def xavier_uniform() -> Initializer:
    """Uniform values of variance 2 / (inputs + outputs), both times the kernel's area.

    Source: Glorot and Bengio 2010, equation 16.
    """

    def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        limit = math.sqrt(6 / (math.prod(shape[:-2]) * (shape[-2] + shape[-1])))
        return (rng.random(shape, np.float32) * 2 - 1) * np.float32(limit)

    return _drawn(draw)


def constant(value: float) -> Initializer:
    """One value everywhere."""
    return lambda key, shape, dtype=jnp.float32, *_: filled(shape, value, dtype)


def filled(shape: Sequence[int] | int, value: float, dtype: Any = jnp.float32) -> jax.Array:
    """An array filled with one value, made without compiling anything."""
    return jnp.asarray(np.full(shape, value, dtype))


def _drawn(draw: Draw) -> Initializer:
    def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32, *_: Any) -> jax.Array:
        if isinstance(key, jax.core.Tracer):
            return jnp.zeros(tuple(shape), dtype)
        if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            key = jax.random.key_data(key)
        rng = np.random.default_rng(np.asarray(key).ravel().tolist())
        return jnp.asarray(draw(rng, tuple(shape)), dtype)

    return init
