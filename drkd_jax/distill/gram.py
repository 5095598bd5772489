"""The Gram matrix of two feature maps, forward and backward.

    G = sum over pixels of [s; t; 1] [s; t; 1]^T
    dL/ds = s (dG_ss + dG_ss^T) + t dG_st^T + dG_s        likewise for t

The pixel relation is an exact function of it (gram_distance.py). On a CPU the maps are read in
chunks that fit its cache. On an accelerator the two maps are concatenated once, so that the
gradient is a single matrix product; in bfloat16 the Gram matrix is a single product too, which
uses the device better than three.

Letters: B images, h w a map, Cs Ct student and teacher channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from drkd_jax.distill.layers import accumulator, product
from drkd_jax.ops.platform import platform
from drkd_jax.types import Array

CPU_CHUNK = 1344  # pixels of the whole batch that are read at a time
# Pixels per image, whatever the number of images and devices: each device holds its own part
# of the batch, and a program compiled for all devices cannot know how large that part is.
ACCELERATOR_CHUNK = 16384


class Gram(NamedTuple):
    """Sums over the valid pixels of an image, in float32 at least."""

    ss: Float[Array, "B Cs Cs"]
    st: Float[Array, "B Cs Ct"]
    tt: Float[Array, "B Ct Ct"]
    s: Float[Array, "B Cs"]
    t: Float[Array, "B Ct"]


def _chunks(shape: tuple[int, ...]) -> tuple[int, int]:
    """The number of whole chunks and the map rows in each; left-over rows are done separately.

    Chunks limit the temporary memory to a few times their size; on a CPU they keep masks, copies
    and casts in the cache.
    """
    on_cpu = platform() == "cpu"
    pixels = CPU_CHUNK // max(1, shape[0]) if on_cpu else ACCELERATOR_CHUNK
    rows = max(1, min(shape[1], pixels // max(1, shape[2])))
    return shape[1] // rows, rows


def over_chunks(
    shape: tuple[int, ...],
    body: Callable[[Any, jax.Array | int, int], Any],
    start: Any,
) -> Any:
    """Runs `body(carry, first row, number of rows)` over all rows of a map."""
    number, rows = _chunks(shape)
    if number == 1:
        carry = body(start, 0, rows)
    else:
        carry = jax.lax.fori_loop(0, number, lambda i, c: body(c, i * rows, rows), start)
    if number * rows < shape[1]:
        carry = body(carry, number * rows, shape[1] - number * rows)
    return carry


def rows_of(x: jax.Array, first: jax.Array | int, number: int) -> jax.Array:
    """Some rows of a map, with their pixels flattened into one axis: [B, number * w, C]."""
    part = jax.lax.dynamic_slice_in_dim(x, first, number, axis=1)
    return part.reshape(x.shape[0], number * x.shape[2], *x.shape[3:])


def _upper(left: jax.Array, right: jax.Array) -> jax.Array:
    """left^T right where the result is symmetric, for three quarters of the work."""
    half = left.shape[-1] // 2
    if half < 64:
        return product("bpc,bpd->bcd", left, right)
    first = product("bpc,bpd->bcd", left[..., :half], right)
    last = product("bpc,bpd->bcd", left[..., half:], right[..., half:])
    mirrored = jnp.swapaxes(first[..., half:], 1, 2)
    return jnp.concatenate([first, jnp.concatenate([mirrored, last], 2)], 1)


def gram(
    s: Float[Array, "B h w Cs"], t: Float[Array, "B h w Ct"], mask: Bool[Array, "B h w"]
) -> Gram:
    """Gram blocks and sums of two maps.

    Args:
        s: the student's map.
        t: the teacher's map.
        mask: the valid pixels.

    Returns:
        The blocks, accumulated in float32 (in float64 if the maps are).
    """
    return (_in_chunks if platform() == "cpu" else _joined)(s, t, mask)


@jax.custom_vjp
def _in_chunks(s: jax.Array, t: jax.Array, mask: jax.Array) -> Gram:
    wide = accumulator(s, t)

    def body(sums: Gram, first: jax.Array | int, number: int) -> Gram:
        inside = rows_of(mask, first, number)[..., None]
        part_s, part_t = (jnp.where(inside, rows_of(x, first, number), 0) for x in (s, t))
        part = Gram(
            _upper(part_s, part_s),
            product("bpc,bpd->bcd", part_s, part_t),
            _upper(part_t, part_t),
            part_s.sum(1, dtype=wide),
            part_t.sum(1, dtype=wide),
        )
        return jax.tree.map(jnp.add, sums, part)

    images, channels_s, channels_t = s.shape[0], s.shape[-1], t.shape[-1]
    zeros = Gram(
        jnp.zeros((images, channels_s, channels_s), wide),
        jnp.zeros((images, channels_s, channels_t), wide),
        jnp.zeros((images, channels_t, channels_t), wide),
        jnp.zeros((images, channels_s), wide),
        jnp.zeros((images, channels_t), wide),
    )
    return over_chunks(s.shape, body, zeros)


def _forward(s: jax.Array, t: jax.Array, mask: jax.Array) -> tuple[Gram, tuple[jax.Array, ...]]:
    return _in_chunks(s, t, mask), (s, t, mask)


def _times(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """Pixels times matrix, per image.

    For a bfloat16 map the matrix is split into a high and a low bfloat16 part: the result is a
    small difference of large numbers, which rounding to one part alone would destroy.
    """
    if x.dtype != jnp.bfloat16:
        return product("bpc,bcd->bpd", x, matrix.astype(x.dtype))
    high, low = _pieces(matrix, x.dtype)
    return product("bpc,bcd->bpd", x, high) + product("bpc,bcd->bpd", x, low)


def _pieces(matrix: jax.Array, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    high = matrix.astype(dtype)
    return high, (matrix - high).astype(dtype)


def _pull(
    own: jax.Array,
    other: jax.Array,
    mask: jax.Array,
    square: jax.Array,
    cross: jax.Array,
    total: jax.Array,
) -> jax.Array:
    """The gradient of one map: own square + other cross + total, at the valid pixels."""

    def body(out: jax.Array, first: jax.Array | int, number: int) -> jax.Array:
        parts = (rows_of(x, first, number) for x in (own, other))
        pulled = sum(map(_times, parts, (square, cross)), total[:, None])
        pulled = jnp.where(rows_of(mask, first, number)[..., None], pulled, 0).astype(own.dtype)
        shaped = pulled.reshape(own.shape[0], number, *own.shape[2:])
        return jax.lax.dynamic_update_slice_in_dim(out, shaped, first, axis=1)

    return over_chunks(own.shape, body, jnp.zeros_like(own))


def _backward(kept: tuple[jax.Array, ...], d: Gram) -> tuple[jax.Array, jax.Array, None]:
    s, t, mask = kept
    # The compiler drops the teacher's part where nobody asks for it.
    return (
        _pull(s, t, mask, d.ss + d.ss.swapaxes(1, 2), d.st.swapaxes(1, 2), d.s),
        _pull(t, s, mask, d.tt + d.tt.swapaxes(1, 2), d.st, d.t),
        None,
    )


_in_chunks.defvjp(_forward, _backward)


def bands(pixels: int) -> int:
    """How many parts an image's pixels are summed in: a divisor of their number.

    A matrix product with few rows and columns but very many pixels occupies only a part of a GPU.
    """
    wanted = -(-pixels // ACCELERATOR_CHUNK)
    return max(number for number in range(1, wanted + 1) if pixels % number == 0)


def _blocks(x: jax.Array, split: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The blocks ss, st and tt of a concatenated map [B, bands, P, Cs + Ct]."""
    s, t = x[..., :split], x[..., split:]
    if x.dtype != jnp.bfloat16:
        # Here arithmetic dominates, so no block is computed twice, nor both symmetric halves.
        flat_s, flat_t = (part.reshape(-1, *part.shape[2:]) for part in (s, t))
        all_bands = (
            _upper(flat_s, flat_s),
            product("bpc,bpd->bcd", flat_s, flat_t),
            _upper(flat_t, flat_t),
        )
        ss, st, tt = (one.reshape(*x.shape[:2], *one.shape[1:]).sum(1) for one in all_bands)
        return ss, st, tt
    square = product("bkpc,bkpd->bkcd", x, x).sum(1)
    return square[:, :split, :split], square[:, :split, split:], square[:, split:, split:]


@jax.custom_vjp
def _joined(s: jax.Array, t: jax.Array, mask: jax.Array) -> Gram:
    return _joined_forward(s, t, mask)[0]


def _joined_forward(
    s: jax.Array, t: jax.Array, mask: jax.Array
) -> tuple[Gram, tuple[jax.Array, ...]]:
    images, pixels, split = s.shape[0], s.shape[1] * s.shape[2], s.shape[3]
    number = bands(pixels)
    wide_s, wide_t = (
        jnp.pad(x, [(0, 0)] * 3 + [ends]) for x, ends in ((s, (0, t.shape[3])), (t, (split, 0)))
    )
    both = jnp.where(mask[..., None], wide_s + wide_t, 0)
    x = both.reshape(images, number, pixels // number, both.shape[-1])
    total = x.sum((1, 2), dtype=accumulator(s, t))
    blocks = Gram(*_blocks(x, split), total[:, :split], total[:, split:])
    # Empty arrays carry the maps' dtypes, since the concatenated map may have another.
    return blocks, (x, mask, s[:0], t[:0])


def _joined_backward(kept: tuple[jax.Array, ...], d: Gram) -> tuple[jax.Array, jax.Array, None]:
    x, mask, s, t = kept
    flat = x.reshape(x.shape[0], -1, x.shape[-1])

    def pulled(first: jax.Array, last: jax.Array, total: jax.Array, like: jax.Array) -> jax.Array:
        matrix, rest = jnp.concatenate([first, last], 1), total[:, None]
        if flat.dtype == jnp.bfloat16:
            matrix, low = _pieces(matrix, flat.dtype)
            # The low part contributes so little that bfloat16 is precise enough for it.
            rest = rest + jnp.einsum("bpc,bcd->bpd", flat, low)
        inside = mask.reshape(mask.shape[0], -1, 1)
        rest = jnp.where(inside, rest, 0)
        # Masked separately from `rest`: otherwise the compiler fuses the sum into the product and
        # makes float32 copies.
        out = jnp.where(inside, product("bpc,bcd->bpd", flat, matrix.astype(flat.dtype)), 0) + rest
        return out.astype(like.dtype).reshape(*mask.shape, -1)

    # The compiler drops the teacher's part where nobody asks for it.
    return (
        pulled(d.ss + d.ss.swapaxes(1, 2), d.st.swapaxes(1, 2), d.s, s),
        pulled(d.st, d.tt + d.tt.swapaxes(1, 2), d.t, t),
        None,
    )


_joined.defvjp(_joined_forward, _joined_backward)
