"""ReLU with a gradient that is computed from its output.

The next layer keeps that output anyway; keeping the input, or a mask, would need another array.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float

from drkd_jax.ops.platform import platform
from drkd_jax.types import Array


def relu(x: Float[Array, "*N"]) -> Float[Array, "*N"]:
    """``max(x, 0)``; the gradient is 1 above 0 and 0 elsewhere, as that of `jax.nn.relu`.

    Except on a CPU, only first-order reverse-mode differentiation is supported. On a CPU this is
    `jax.nn.relu` itself: the custom form saves no memory there and takes longer to compile.

    Args:
        x: any shape and float dtype.

    Returns:
        The same shape and dtype.
    """
    return jax.nn.relu(x) if platform() in ("cpu", "onnx") else _relu(x)


@jax.custom_vjp
def _relu(x: Array) -> Array:
    return jnp.maximum(x, 0)


def _forward(x: Array) -> tuple[Array, Array]:
    out = jnp.maximum(x, 0)
    return out, out


def _backward(out: Array, gradient: Array) -> tuple[Array]:
    # Without the barrier the compiler could compare in the forward pass and keep the mask.
    kept = jax.lax.optimization_barrier(out)
    return (jnp.where(kept > 0, gradient, jnp.zeros_like(gradient)),)


_relu.defvjp(_forward, _backward)
