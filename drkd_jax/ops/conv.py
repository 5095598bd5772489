"""Convolutions of NHWC maps: XLA's own, and on a CPU its gradient and its strides as products.

Letters: B pictures, h w C input, p q D output, k a side of the kernel.

XLA on a CPU has a fast forward convolution of stride 1 and slow ones for the rest: the gradient
of a kernel is a convolution with a kernel as large as the map. There

- a wide strided one, as a stem's 7x7, is one of stride 1 over blocks of pixels, laid side by side
  as channels; the gain is too small to be seen at 3x3;
- one of a single pixel is a matrix product;
- the gradient of a kernel is one matrix product, of the k row shifts of the input, as channels, and
  the k column shifts of the output's gradient: every pair of them is one tap. Each side is copied
  k times; a product over patches copies the input k^2 times.

Sums run in another order than XLA's, so results agree to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from drkd_jax.ops.platform import platform

_NHWC = ("NHWC", "HWIO", "NHWC")
_VALID = ((0, 0), (0, 0))

# Input times output channels from which on XLA's gradient of a kernel is as fast.
_WIDE = 128 * 64


def convolve(
    x: Float[jax.Array, "B h w C"],
    kernel: Float[jax.Array, "k k _C D"],
    window_strides: Sequence[int],
    padding: Any,
    *,
    feature_group_count: int = 1,
    precision: Any = None,
    **others: Any,
) -> Float[jax.Array, "B p q D"]:
    """`jax.lax.conv_general_dilated`, by the forms above where they are faster.

    Args:
        x: the input.
        kernel: ``[k, k, C / groups, D]``.
        window_strides: along y and x.
        padding: pairs of numbers (before, after) along y and x, or what XLA takes.
        feature_group_count: groups.
        precision: of the products.
        others: further arguments of `jax.lax.conv_general_dilated`, passed on.

    Returns:
        ``[B, p, q, D]`` in the input's dtype.
    """
    size, (stride, other) = kernel.shape[0], tuple(window_strides)
    plain = (
        platform() == "cpu"
        and x.dtype in (jnp.float32, jnp.float64)
        and x.dtype == kernel.dtype
        and feature_group_count == 1
        and kernel.shape[1] == size
        and other == stride
        and (stride == 1 or size == 1 or size > 2 * stride)
        and not isinstance(padding, str)
        and all(_neutral(name, value) for name, value in others.items())
    )
    if not plain:
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            window_strides,
            padding,
            feature_group_count=feature_group_count,
            precision=precision,
            **others,
        )
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    if size > 1 and stride > 1:
        shape = tuple((n - size) // stride + 1 for n in x.shape[1:3])
        x, kernel = _blocks(x, kernel, stride, shape)
    if size == 1:
        return jnp.tensordot(x[:, ::stride, ::stride], kernel[0, 0], 1, precision=precision)
    if kernel.shape[2] * kernel.shape[3] > _WIDE:
        return _xla(x, kernel, precision)
    return _stride_one(x, kernel, precision)


def _neutral(name: str, value: Any) -> bool:
    """Whether an argument asks for nothing beside a plain convolution of NHWC maps."""
    if name == "dimension_numbers":
        return value is not None and jax.lax.conv_dimension_numbers(
            (1,) * 4, (1,) * 4, value
        ) == jax.lax.conv_dimension_numbers((1,) * 4, (1,) * 4, _NHWC)
    if name in ("lhs_dilation", "rhs_dilation"):
        return value is None or all(n == 1 for n in value)
    return value is None


def _blocks(
    x: Float[jax.Array, "B h w C"],
    kernel: Float[jax.Array, "k k C D"],
    stride: int,
    shape: tuple[int, ...],
) -> tuple[jax.Array, jax.Array]:
    """Blocks of ``stride`` pixels a side as channels, and the kernel that reads them."""
    (B, _, _, C), size = x.shape, kernel.shape[0]
    taps = -(-size // stride)
    y, z = (n + taps - 1 for n in shape)
    ends = [(0, max(n * stride - m, 0)) for n, m in zip((y, z), x.shape[1:3], strict=True)]
    x = jnp.pad(x, ((0, 0), *ends, (0, 0)))[:, : y * stride, : z * stride]
    x = x.reshape(B, y, stride, z, stride, C).swapaxes(2, 3).reshape(B, y, z, -1)
    missing = (0, taps * stride - size)
    kernel = jnp.pad(kernel, (missing, missing, (0, 0), (0, 0)))
    kernel = kernel.reshape(taps, stride, taps, stride, C, -1).swapaxes(1, 2)
    return x, kernel.reshape(taps, taps, stride * stride * C, -1)


def _xla(
    x: Float[jax.Array, "B h w C"], kernel: Float[jax.Array, "k k C D"], precision: Any
) -> Float[jax.Array, "B p q D"]:
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), _VALID, dimension_numbers=_NHWC, precision=precision
    )


# Its kernel's gradient as a product.
_stride_one = jax.custom_vjp(_xla, nondiff_argnums=(2,))


def _forward(x: jax.Array, kernel: jax.Array, precision: Any) -> tuple[jax.Array, Any]:
    return _xla(x, kernel, precision), (x, kernel)


def _backward(precision: Any, saved: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    size, around = kernel.shape[0], kernel.shape[0] - 1
    of_x = jax.lax.conv_general_dilated(
        gradient,
        kernel[::-1, ::-1].swapaxes(2, 3),
        (1, 1),
        ((around, around),) * 2,
        dimension_numbers=_NHWC,
        precision=precision,
    )
    (_, p, _, D), C = gradient.shape, x.shape[3]
    rows = jnp.concatenate([x[:, i : i + p] for i in range(size)], axis=3)
    columns = jnp.concatenate(
        [jnp.pad(gradient, ((0, 0), (0, 0), (i, around - i), (0, 0))) for i in range(size)], axis=3
    )
    taps = jnp.tensordot(rows, columns, ((0, 1, 2), (0, 1, 2)), precision=precision)
    return of_x, taps.reshape(size, C, size, D).swapaxes(1, 2)


_stride_one.defvjp(_forward, _backward)
