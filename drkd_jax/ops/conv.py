"""Convolutions of NHWC maps by XLA, written in the form that runs fastest on the device.

Letters: B images, h w C input, p q D output, k side of the kernel.

XLA on a CPU is fast at stride 1 and slow for strided convolutions with few channels; the speed of
some gradients depends on how the same convolution is written. On a CPU therefore

- a large strided one, like a stem's 7x7, becomes one of stride 1 over blocks of pixels stacked
  as channels: 2.7 times faster forward, 4 times for the kernel's gradient. 3x3 gains nothing;
- a 1x1 one with many channels becomes a matrix product: 2.8 times faster for the kernel's gradient;
  with all pixels flattened into one axis, up to 3.7 times more;
- with few channels, the kernel's gradient is that of a convolution whose input was padded
  beforehand: 2.0 to 2.7 times faster, with equal results;
- with many, that gradient is one matrix product per tap: 1.5 to 2.7 times faster on maps of
  32 x 40, about equal on smaller ones. With 8 to 64 channels it is slower, up to twice at stride 1;
- with 64 or more on maps of many pixels it is one product per row of taps: 1.1 to 2.8 times faster;
- on maps of few pixels it is one product for all taps: equally fast at 2 x 8 x 10, up to 100 times
  faster at 2 x 2 x 3;
- groups that fit in a few slices of the channels become a dense convolution per slice: 2.7 to 4
  times faster forward. XLA computes the kernel gradient of grouped convolutions by plain loops; by
  slices or, for more groups, by one product per tap it is over a hundred times faster.

A GPU multiplies blocks of channels. There, too, a stem's 7x7 is twice as fast over blocks of
pixels. Groups of 4 or 8 channels are merged to `_JOINED` channels, with a kernel that is 0 between
the original groups: a fifth to a third less time. Groups of 16 and more are slower when merged.

`docs/results-speed.md` has the measurements.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from drkd_jax.ops.platform import platform

_NHWC = ("NHWC", "HWIO", "NHWC")
_NONE = ((0, 0), (0, 0))

# Input times output channels: up to the first number the gradient with an input padded beforehand
# is faster; from the second on a 1x1 convolution is faster as a matrix product.
_NARROW, _WIDE = 16 * 16, 64 * 64
# If input and output channels both reach this, the gradient of a kernel with several taps is
# computed tap by tap. At 256 to 72 channels that took 69 ms, XLA's own 47.
_MANY = 128
# From `_SOME` channels on it is computed by rows of taps, if output pixels times taps times the
# larger channel count reach `_LARGE`. With fewer channels it is faster alone, but not in a step.
_SOME, _LARGE = 64, 3_000_000
# Up to this many output pixels of all images, a kernel of several taps is one product. At 256
# channels 2 maps of 8 x 10 take the same time either way; at 2 x 3 XLA takes 10 to 100 times as
# long.
_FEW = 160
# At 4, 8 and 16 channels per group, slices of 32 channels cost less than ones of 16 (with kernel
# gradients 3 times as slow) or 64 (twice the arithmetic). More slices take too long to compile: 16
# take 1.9 s forward, XLA's own form 0.01 s, to save 4 ms per run. Groups of fewer channels were not
# measured.
_LEAST, _SLICE, _SLICES = 4, 32, 8
# On a GPU: the most channels of groups that are merged, and the channels of the merged groups.
_THIN, _JOINED = 8, 64


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
    """`jax.lax.conv_general_dilated`, in one of the forms above if that is faster.

    Args:
        x: the input.
        kernel: ``[k, k, C / groups, D]``.
        window_strides: along y and x.
        padding: pairs (before, after) along y and x, or any padding that XLA accepts.
        feature_group_count: groups.
        precision: of the products.
        others: further arguments of `jax.lax.conv_general_dilated`, passed on.

    Returns:
        ``[B, p, q, D]`` in the input's dtype.
    """
    size, stride = kernel.shape[0], window_strides[0]

    def by_xla(x: Any, kernel: Any, strides: Sequence[int], padding: Any) -> Any:
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            strides,
            padding,
            feature_group_count=feature_group_count,
            precision=precision,
            **others,
        )

    plain = (
        kernel.shape[1] == size
        and window_strides[1] == stride
        and not isinstance(padding, str)
        and all(_neutral(name, value) for name, value in others.items())
    )
    if not plain or platform() == "onnx":
        return by_xla(x, kernel, window_strides, padding)
    padding = tuple((int(before), int(after)) for before, after in padding)
    groups = feature_group_count
    if platform() != "cpu":
        if groups == 1 and size > 2 * stride > 2:
            return by_xla(*_blocks(_pad(x, padding), kernel, stride), (1, 1), _NONE)
        if kernel.shape[2] <= _THIN and (joined := _merged(kernel.shape[2], groups, _JOINED)) > 1:
            kernel, feature_group_count = _joined(kernel, groups, joined), groups // joined
        return by_xla(x, kernel, window_strides, padding)
    if x.dtype not in (jnp.float32, jnp.float64):
        return by_xla(x, kernel, window_strides, padding)
    if groups > 1:
        least = min(kernel.shape[2], kernel.shape[3] // groups)
        merged = _merged(kernel.shape[2], groups, _SLICE)
        if merged * _SLICES >= groups and least >= _LEAST:
            slices = groups // merged
            dense = jnp.split(_joined(kernel, groups, merged), slices, -1)
            parts = [
                convolve(a, b, (stride,) * 2, padding, precision=precision, **others)
                for a, b in zip(jnp.split(x, slices, -1), dense, strict=True)
            ]
            return jnp.concatenate(parts, -1)
        return _written(x, kernel, stride, padding, groups, precision)
    channels = kernel.shape[2] * kernel.shape[3]
    if size == 1 and channels >= _WIDE:
        x = _pad(x, padding)[:, ::stride, ::stride]
        found = _product(x.reshape(-1, x.shape[-1]), kernel[0, 0], precision)
        return found.reshape(*x.shape[:-1], -1)
    if size > 2 * stride > 2:
        return by_xla(*_blocks(_pad(x, padding), kernel, stride), (1, 1), _NONE)
    pixels = _pixels(x.shape, size, stride, padding)
    if size > 1 and channels >= _WIDE and pixels is not None and pixels <= _FEW:
        return _as_product(_pad(x, padding), kernel, stride, precision)
    narrow = stride == 1 and channels <= _NARROW
    if size > 1 and (narrow or _by_products(kernel, pixels)):
        return _written(x, kernel, stride, padding, 1, precision)
    return by_xla(x, kernel, window_strides, padding)


def _pad(x: jax.Array, padding: Any) -> jax.Array:
    return jnp.pad(x, ((0, 0), *padding, (0, 0)))


def _neutral(name: str, value: Any) -> bool:
    """Whether an argument has the value of a plain convolution of NHWC maps."""
    if name == "dimension_numbers":
        return value is not None and jax.lax.conv_dimension_numbers(
            (1,) * 4, (1,) * 4, value
        ) == jax.lax.conv_dimension_numbers((1,) * 4, (1,) * 4, _NHWC)
    if name in ("lhs_dilation", "rhs_dilation"):
        return value is None or all(n == 1 for n in value)
    return value is None


def _blocks(
    x: Float[jax.Array, "B h w C"], kernel: Float[jax.Array, "k k C D"], stride: int
) -> tuple[jax.Array, jax.Array]:
    """Blocks of ``stride`` x ``stride`` pixels stacked as channels, and the kernel for them."""
    (B, _, _, C), size = x.shape, kernel.shape[0]
    taps = -(-size // stride)
    y, z = ((n - size) // stride + taps for n in x.shape[1:3])
    ends = [(0, max(n * stride - m, 0)) for n, m in zip((y, z), x.shape[1:3], strict=True)]
    x = jnp.pad(x, ((0, 0), *ends, (0, 0)))[:, : y * stride, : z * stride]
    x = x.reshape(B, y, stride, z, stride, C).swapaxes(2, 3).reshape(B, y, z, -1)
    missing = (0, taps * stride - size)
    kernel = jnp.pad(kernel, (missing, missing, (0, 0), (0, 0)))
    kernel = kernel.reshape(taps, stride, taps, stride, C, -1).swapaxes(1, 2)
    return x, kernel.reshape(taps, taps, stride * stride * C, -1)


def _pixels(shape: Sequence[int], size: int, stride: int, padding: Any) -> int | None:
    """Output pixels of all images; None if a dimension is symbolic (in an export)."""
    sides = zip(shape[1:3], padding, strict=True)
    pixels = math.prod((n + sum(ends) - size) // stride + 1 for n, ends in sides)
    return shape[0] * pixels if isinstance(shape[0], int) else None


def _by_products(kernel: Float[jax.Array, "k k C D"], pixels: int | None) -> bool:
    """Whether the gradient of such a kernel is one product per tap or per row of taps."""
    size, _, *channels = kernel.shape
    large = pixels is not None and pixels * size**2 * max(channels) >= _LARGE
    return min(channels) >= (_SOME if large else _MANY)


def _shifts(x: jax.Array, axis: int, length: int, size: int, stride: int) -> list[jax.Array]:
    """The input that each row (axis 1) or each column (axis 2) of a kernel reads."""
    end = (length - 1) * stride + 1
    return [jax.lax.slice_in_dim(x, i, i + end, stride, axis) for i in range(size)]


def _read(
    x: Float[jax.Array, "B h w C"], p: int, q: int, size: int, stride: int
) -> list[Float[jax.Array, "B p q C"]]:
    """The input that each tap of a kernel reads, row by row."""
    high, wide = ((n - 1) * stride + 1 for n in (p, q))
    return [
        x[:, i : i + high : stride, j : j + wide : stride] for i in range(size) for j in range(size)
    ]


def _as_product(
    x: Float[jax.Array, "B h w C"], kernel: Float[jax.Array, "k k C D"], stride: int, precision: Any
) -> Float[jax.Array, "B p q D"]:
    """The inputs of all taps concatenated as channels, times the kernel."""
    size = kernel.shape[0]
    p, q = ((n - size) // stride + 1 for n in x.shape[1:3])
    side_by_side = jnp.concatenate(_read(x, p, q, size, stride), -1).reshape(x.shape[0] * p * q, -1)
    found = jnp.dot(side_by_side, kernel.reshape(-1, kernel.shape[-1]), precision=precision)
    return found.reshape(x.shape[0], p, q, -1)


def _merged(inputs: int, groups: int, most: int) -> int:
    """How many groups of ``inputs`` channels to merge, to at most ``most`` channels together."""
    fitting = (n for n in range(1, groups + 1) if groups % n == 0 and n * inputs <= most)
    return max(fitting, default=1)


def _joined(
    kernel: Float[jax.Array, "k k _C D"], groups: int, merged: int
) -> Float[jax.Array, "k k _E D"]:
    """The equivalent kernel with ``merged`` groups in each of its own."""
    size, _, inputs, _ = kernel.shape
    split = kernel.reshape(size, size, inputs, groups // merged, merged, -1)
    own = jnp.eye(merged, dtype=kernel.dtype)  # zero between channels of different groups
    wide = jnp.einsum("yxcnmd,km->yxkcnmd", split, own)
    return wide.reshape(size, size, merged * inputs, -1)


def _plain(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Any, groups: int, precision: Any
) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=_NHWC,
        feature_group_count=groups,
        precision=precision,
    )


# XLA's convolution with a custom gradient for its kernel.
_written = jax.custom_vjp(_plain, nondiff_argnums=(2, 3, 4, 5))


def _forward(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Any, groups: int, precision: Any
) -> tuple[jax.Array, Any]:
    return _plain(x, kernel, stride, padding, groups, precision), (x, kernel)


def _backward(
    stride: int, padding: Any, groups: int, precision: Any, saved: Any, gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    of_x = jax.vjp(lambda x: _plain(x, kernel, stride, padding, groups, precision), x)[1]
    x = _pad(x, padding)
    if groups > 1 or _by_products(kernel, math.prod(gradient.shape[:3])):
        return of_x(gradient)[0], _by_taps(x, gradient, kernel.shape[0], stride, groups, precision)
    of_kernel = jax.vjp(lambda kernel: _plain(x, kernel, stride, _NONE, 1, precision), kernel)[1]
    return of_x(gradient)[0], of_kernel(gradient)[0]


_written.defvjp(_forward, _backward)


def _by_taps(
    x: Float[jax.Array, "B h w C"],
    gradient: Float[jax.Array, "B p q D"],
    size: int,
    stride: int,
    groups: int,
    precision: Any,
) -> Float[jax.Array, "k k _C D"]:
    """The kernel's gradient: for each tap the product of the pixels that it read and the gradient.

    With fewer than `_MANY` channels whole rows of taps are used: wider products are faster.
    """
    (p, q), channels = gradient.shape[1:3], x.shape[-1]
    if groups == 1:
        if min(channels, gradient.shape[-1]) < _MANY:
            side_by_side = jnp.concatenate(_shifts(x, 2, q, size, stride), -1)
            read = _shifts(side_by_side, 1, p, size, stride)
        else:
            read = _read(x, p, q, size, stride)
        gradient = gradient.reshape(-1, gradient.shape[-1])
        taps = [_over_pixels(a.reshape(-1, a.shape[-1]), gradient, precision) for a in read]
        return jnp.stack(taps).reshape(size, size, channels, -1)
    read = _read(x, p, q, size, stride)

    def by_group(a: jax.Array) -> jax.Array:
        return jnp.moveaxis(a.reshape(*a.shape[:3], groups, -1), 3, 0)

    gradient = by_group(gradient)
    pixels, alike = ((1, 2, 3), (1, 2, 3)), ((0,), (0,))
    taps = [jax.lax.dot_general(by_group(a), gradient, (pixels, alike), precision) for a in read]
    return jnp.stack(taps).swapaxes(1, 2).reshape(size, size, taps[0].shape[1], -1)


def _over_pixels(
    x: Float[jax.Array, "N C"], gradient: Float[jax.Array, "N D"], precision: Any
) -> Float[jax.Array, "C D"]:
    """The sum over all pixels of the outer products of two maps' channels.

    XLA is twice as slow with the transpose of the wider factor as with that of the narrower one.
    The barrier keeps it from swapping the factors.
    """
    pixels = (((0,), (0,)), ((), ()))
    if x.shape[1] <= gradient.shape[1]:
        return jax.lax.dot_general(x, gradient, pixels, precision)
    found = jax.lax.dot_general(gradient, x, pixels, precision)
    return jax.lax.optimization_barrier(found).T


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(
    x: Float[jax.Array, "N C"], kernel: Float[jax.Array, "C D"], precision: Any
) -> Float[jax.Array, "N D"]:
    """Every pixel's channels times a matrix, with a custom gradient for that matrix."""
    return jnp.dot(x, kernel, precision=precision)


def _product_forward(
    x: jax.Array, kernel: jax.Array, precision: Any
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return jnp.dot(x, kernel, precision=precision), (x, kernel)


def _product_backward(
    precision: Any, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    of_x = jnp.dot(gradient, kernel.T, precision=precision)
    return of_x, _over_pixels(x, gradient, precision)


_product.defvjp(_product_forward, _product_backward)
