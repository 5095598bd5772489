"""Placeholder calls for operators that ONNX runtimes provide.

Letters: L any leading axes, N boxes, B images, R regions, h w C one map, S bins per side.

A function traced for "onnx" (`ops.platform`) contains these calls instead of the loops of `nms.py`
and `roi_tiles.py`. They cannot be executed: `export/onnx_program.py` replaces them by
NonMaxSuppression and RoiAlign.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import batching
from jaxtyping import Bool, Float, Int

from drkd_jax.types import Array

#: ``(boxes, scores, valid[, groups]; iou) -> keep``, see `suppress`.
SUPPRESS = Primitive("suppress")
#: ``(boxes, levels, *maps; strides, bins, samples, aligned) -> regions``, see `align`.
ALIGN = Primitive("align")


def suppress(
    boxes: Float[Array, "N 4"],
    scores: Float[Array, "N"],
    valid: Bool[Array, "N"],
    groups: Int[Array, "N"] | None,
    iou: float,
) -> Bool[jax.Array, "N"]:
    """`nms.nms` as one call; `jax.vmap` adds leading axes to its operands.

    Args:
        boxes: ``[N, 4]`` xyxy, pixels.
        scores: ``[N]``, none below 0.
        valid: ``[N]``.
        groups: ``[N]`` classes of the head, which do not suppress each other; None: one group.
        iou: an overlap strictly above it suppresses.
    """
    own = () if groups is None else (groups,)
    kept: jax.Array = SUPPRESS.bind(boxes, scores, valid, *own, iou=iou)
    return kept


def align(
    boxes: Float[Array, "B R 4"],
    levels: Int[Array, "B R"],
    maps: tuple[Float[Array, "B _h _w C"], ...],
    *,
    strides: tuple[float | int, ...],
    bins: int,
    samples: int,
    aligned: bool,
) -> Float[jax.Array, "B R S S C"]:
    """`roi_align.roi_align` of float32 maps as one call, with the same arguments."""
    regions: jax.Array = ALIGN.bind(
        boxes, levels, *maps, strides=strides, bins=bins, samples=samples, aligned=aligned
    )
    return regions


def _kept(boxes: Any, scores: Any, valid: Any, *groups: Any, iou: float) -> Any:
    return jax.core.ShapedArray(scores.shape, jnp.dtype(bool))


def _regions(boxes: Any, levels: Any, *maps: Any, bins: int, **rest: Any) -> Any:
    shape = (*levels.shape, bins, bins, maps[0].shape[-1])
    return jax.core.ShapedArray(shape, maps[0].dtype)


def _of_many(operands: Any, axes: Any, **how: Any) -> tuple[Any, int]:
    number = next(x.shape[k] for x, k in zip(operands, axes, strict=True) if k is not None)
    operands = [
        jnp.broadcast_to(x, (number, *x.shape)) if k is None else jnp.moveaxis(x, k, 0)
        for x, k in zip(operands, axes, strict=True)
    ]
    return SUPPRESS.bind(*operands, **how), 0


SUPPRESS.def_abstract_eval(_kept)
ALIGN.def_abstract_eval(_regions)
batching.primitive_batchers[SUPPRESS] = _of_many
