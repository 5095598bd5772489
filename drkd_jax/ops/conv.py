"""Convolutions of NHWC maps: XLA's own, called in the way that the machine runs fastest.

Letters: B pictures, h w C input, p q D output, k a side of the kernel.

XLA on a CPU is quick at stride 1 and slow where a stride meets few channels, and some of its
gradients depend on how the same convolution is written. There

- a wide strided one, as a stem's 7x7, is one of stride 1 over blocks of pixels, laid side by side
  as channels: 2.7 times faster forward, 4 times for the kernel. At 3x3 nothing is gained;
- one of a single pixel with many channels is a matrix product: 2.8 times for the kernel's gradient.
  With all pixels as one axis, up to 3.7 times more;
- with few channels the kernel's gradient is taken of the convolution of an input that was padded
  before: 2.0 to 2.7 times, the same numbers;
- with many, that gradient is one product a tap: 1.5 to 2.7 times on maps of 32 x 40, about the
  same time on smaller ones. From 8 to 64 channels products are slower, up to twice at stride 1;
- with 64 and more on maps of many pixels it is one product a row of taps: 1.1 to 2.8 times;
- on maps of few pixels it is one product of all taps: as fast at 2 x 8 x 10, up to 100 times at
  2 x 2 x 3;
- groups that fit in a few slices of the channels are a dense convolution of each slice: 2.7 to 4
  times forward. XLA computes the gradient of a kernel of groups by plain loops; by slices or, for
  more groups, by products of a tap each it is over a hundred times faster.

A GPU multiplies blocks of channels. A stem's 7x7 is twice as fast over blocks of pixels there, too;
groups of 4 or 8 channels are joined to groups of `_JOINED`, whose kernel is 0 between them: a fifth
to a third less time, while groups of 16 and more are slower joined.

`docs/results-speed.md` has the figures.
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

# Input times output channels: up to the first number gradients of padded inputs are faster, from
# the second one on a product is for a single pixel.
_NARROW, _WIDE = 16 * 16, 64 * 64
# Both channels: from here on a kernel of several taps has its gradient tap by tap. At 256 to 72
# channels that took 69 ms, XLA's 47.
_MANY = 128
# From here on as well, a row of taps at a time, where output pixels times taps times the wider side
# come to that. With fewer channels it is faster alone and slower in a whole step.
_SOME, _LARGE = 64, 3_000_000
# Output pixels of all pictures: up to so many, a kernel of several taps is one product. At 256
# channels 2 maps of 8 x 10 take the same time either way; at 2 x 3 XLA takes 10 to 100 times as
# long.
_FEW = 160
# Slices of 32 channels cost less than ones of 16 (whose kernels' gradients take 3 times as long) or
# 64 (twice the arithmetic) at 4, 8 and 16 channels a group. More slices take too long to compile:
# 16 take 1.9 s forward where XLA's own takes 0.01, to save 4 ms a run. Groups of fewer channels
# were not measured.
_LEAST, _SLICE, _SLICES = 4, 32, 8
# Of a GPU's products: channels of groups that are joined, at most, and of what they are joined to.
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
    """Whether an argument asks for nothing beside a plain convolution of NHWC maps."""
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
    """Blocks of ``stride`` pixels a side as channels, and the kernel that reads them."""
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
    """Output pixels of all pictures; unknown where there may be any number (an export)."""
    sides = zip(shape[1:3], padding, strict=True)
    pixels = math.prod((n + sum(ends) - size) // stride + 1 for n, ends in sides)
    return shape[0] * pixels if isinstance(shape[0], int) else None


def _by_products(kernel: Float[jax.Array, "k k C D"], pixels: int | None) -> bool:
    """Whether the gradient of such a kernel is a product a tap, or a row of taps."""
    size, _, *channels = kernel.shape
    large = pixels is not None and pixels * size**2 * max(channels) >= _LARGE
    return min(channels) >= (_SOME if large else _MANY)


def _shifts(x: jax.Array, axis: int, length: int, size: int, stride: int) -> list[jax.Array]:
    """What each row (of axis 1) or each column (of axis 2) of a kernel reads."""
    end = (length - 1) * stride + 1
    return [jax.lax.slice_in_dim(x, i, i + end, stride, axis) for i in range(size)]


def _read(
    x: Float[jax.Array, "B h w C"], p: int, q: int, size: int, stride: int
) -> list[Float[jax.Array, "B p q C"]]:
    """What each tap of a kernel reads, row by row."""
    high, wide = ((n - 1) * stride + 1 for n in (p, q))
    return [
        x[:, i : i + high : stride, j : j + wide : stride] for i in range(size) for j in range(size)
    ]


def _as_product(
    x: Float[jax.Array, "B h w C"], kernel: Float[jax.Array, "k k C D"], stride: int, precision: Any
) -> Float[jax.Array, "B p q D"]:
    """All taps side by side as channels, times the kernel."""
    size = kernel.shape[0]
    p, q = ((n - size) // stride + 1 for n in x.shape[1:3])
    side_by_side = jnp.concatenate(_read(x, p, q, size, stride), -1).reshape(x.shape[0] * p * q, -1)
    found = jnp.dot(side_by_side, kernel.reshape(-1, kernel.shape[-1]), precision=precision)
    return found.reshape(x.shape[0], p, q, -1)


def _merged(inputs: int, groups: int, most: int) -> int:
    """How many groups of so many channels have at most ``most`` of them together."""
    fitting = (n for n in range(1, groups + 1) if groups % n == 0 and n * inputs <= most)
    return max(fitting, default=1)


def _joined(
    kernel: Float[jax.Array, "k k _C D"], groups: int, merged: int
) -> Float[jax.Array, "k k _E D"]:
    """The kernel that has so many groups in each of its own, with the same answer."""
    size, _, inputs, _ = kernel.shape
    split = kernel.reshape(size, size, inputs, groups // merged, merged, -1)
    own = jnp.eye(merged, dtype=kernel.dtype)  # zero where a group meets another one's channels
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


# A convolution of XLA's with a written gradient of its kernel.
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
    """The kernel's gradient: each tap is a product of the pixels that it read and the gradient.

    With fewer than `_MANY` channels it is each row of taps: the wider, the faster.
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
    """The sum over all pixels of a pixel's channels times another's.

    XLA multiplies the transpose of the wider side twice as slowly as that of the narrower one. The
    barrier keeps it from writing the product the other way round.
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
    """Every pixel's channels times a matrix, with a written gradient of that matrix."""
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
