"""RoIAlign over the levels of a pyramid.

Letters: B images, R regions, h w C one feature map, S bins along one axis.

Every region reads only its own level, through the tiles of `roi_tiles.py`. Fixed and adaptive
numbers of samples use the same program, exact despite static shapes. Its cost grows with the cells
that the regions cover on their levels, not with the samples: adaptive sampling takes 0.86 of the
time of 2x2 samples forward, 1.07 of it with the gradient (512 regions of 256 channels on P2..P5 of
800x1344, two CPU cores, `benchmarks/ops.py`).

Alternatives differ in the gradient. On the same regions (`benchmarks/ops.py --backward`), in ms:

| form | forward | backward | MiB besides arguments and results |
|---|---|---|---|
| tiles | 155 | 175 | 87 |
| one gather per corner, differentiated: scatter-adds of single cells | 80 | 1091 | 805 |
| the same, all scatter-adds into one buffer, in turn | 96 | 468 | 87 |
| the same, cells sorted, equal ones summed by segment | 119 | 720 | 481 |

Tiles are added to the gradient in blocks of 16 cells, 20 thousand of them; with single cells it is
400 thousand scattered updates.

On a GPU tiles have another size, and in the forward pass regions with small bins are read by
`roi_windows.py`; docs/results-speed.md has the counted cost of both.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from drkd_jax import boxes as box_ops
from drkd_jax.ops import roi_plan, roi_tiles
from drkd_jax.ops.onnx_calls import align
from drkd_jax.ops.platform import platform
from drkd_jax.ops.spread import by_device
from drkd_jax.types import Array

# No image has coordinates beyond this (pixels); the limit keeps every product finite.
_FARTHEST = 1e6


def roi_align(
    maps: tuple[Float[Array, "B _h _w C"], ...],
    boxes: Float[Array, "B R 4"],
    levels: Int[Array, "B R"],
    strides: tuple[float | int, ...],
    output_size: int = 7,
    sampling_ratio: int = 2,
    aligned: bool = True,
    sizes: Int[Array, "B 2"] | None = None,
    valid: Bool[Array, "B R"] | None = None,
) -> Float[Array, "B R S S C"]:
    """Crops every region from its level as a grid of bins.

    A bin is the mean of bilinear samples, ``sampling_ratio`` along each axis. A sample more than a
    pixel outside the map is 0; one closer than that reads the edge.

    Args:
        maps: One ``[B, h, w, C]`` for each level, all of one dtype.
        boxes: ``[B, R, 4]`` xyxy, pixels of the canvas. Non-finite rows give arbitrary finite
            values.
        levels: ``[B, R]`` index into ``maps``; clipped to its range.
        strides: Canvas pixels per map pixel, for each level.
        output_size: Bins along each axis, S.
        sampling_ratio: Samples along each axis of a bin. 0: adaptive, ``ceil(side / S)`` of the
            region's own side in map pixels, without limit (mmdetection); a region of side 0 then
            gives 0.
        aligned: Whether pixel centres lie at half coordinates (mmdetection); otherwise at whole
            ones, and no region is smaller than one map pixel (torchvision's default).
        sizes: Height and width of the images, canvas pixels: each map then ends where its
            image does, and the padding beyond it is not read. None: the whole canvas.
        valid: The regions to compute. The others are 0, give no gradient and cost nothing (in an
            ONNX file they are computed too). None: all.

    Returns:
        ``[B, R, S, S, C]`` in the dtype of the maps; sums are float32 at least. The gradient goes
        to the maps, not to the boxes.

    Source: He et al., Mask R-CNN, section 3; torchvision ``csrc/ops/cpu/roi_align_kernel.cpp``.
    """
    pyramids = (maps,)
    return roi_align_alike(
        pyramids, boxes, levels, strides, output_size, sampling_ratio, aligned, sizes, valid
    )[0]


@partial(jax.named_call, name="roi_align")
def roi_align_alike(
    pyramids: tuple[tuple[Float[Array, "B _h _w _C"], ...], ...],
    boxes: Float[Array, "B R 4"],
    levels: Int[Array, "B R"],
    strides: tuple[float | int, ...],
    output_size: int = 7,
    sampling_ratio: int = 2,
    aligned: bool = True,
    sizes: Int[Array, "B 2"] | None = None,
    valid: Bool[Array, "B R"] | None = None,
) -> tuple[Float[Array, "B R S S _C"], ...]:
    """`roi_align` of the same regions for several pyramids together.

    Args:
        pyramids: the maps of each pyramid; on each level they have the same height and width,
            while channels and dtype may differ.
        boxes: see `roi_align`.
        levels: see there.
        strides: see there.
        output_size: see there.
        sampling_ratio: see there.
        aligned: see there.
        sizes: see there.
        valid: see there.

    Returns:
        The regions of each pyramid.
    """
    maps = pyramids[0]
    wide = jnp.promote_types(jnp.float32, maps[0].dtype)
    how = roi_plan.How(output_size, sampling_ratio)
    levels = jnp.clip(levels, 0, len(maps) - 1)
    scales = jnp.asarray([1.0 / stride for stride in strides], wide)[levels]
    boxes = jax.lax.stop_gradient(jnp.asarray(boxes, wide))
    boxes = jnp.clip(jnp.nan_to_num(boxes), -_FARTHEST, _FARTHEST)
    if platform() == "onnx" and sizes is None:
        call = partial(
            align, strides=tuple(strides), bins=output_size, samples=sampling_ratio, aligned=aligned
        )
        floats = (tuple(jnp.asarray(m, wide) for m in maps) for maps in pyramids)
        found = (call(boxes, levels, of_one) for of_one in floats)
        return tuple(x.astype(maps[0].dtype) for x, maps in zip(found, pyramids, strict=True))
    x0, y0, x1, y1 = jnp.moveaxis(boxes * scales[..., None] - (0.5 if aligned else 0.0), -1, 0)
    shapes = np.asarray([plane.shape[1:3] for plane in maps], np.int32)
    cells = shapes[:, 0] * shapes[:, 1]
    ends = jnp.asarray(shapes)[levels]
    if sizes is not None:
        own = jnp.ceil(jnp.asarray(sizes, wide)[:, None] * scales[..., None])
        ends = jnp.clip(own, 1, ends)
    shortest = 0.0 if aligned else 1.0
    plan = roi_plan.Plan(
        jnp.ones(boxes.shape[:2], bool) if valid is None else jnp.asarray(valid),
        roi_plan.axis(y0, y1, ends[..., 0], how, shortest),
        roi_plan.axis(x0, x1, ends[..., 1], how, shortest),
        jnp.asarray(np.cumsum(cells) - cells)[levels],
        jnp.asarray(shapes[:, 1])[levels],
    )
    flats = tuple(
        jnp.concatenate([jnp.reshape(m, (m.shape[0], -1, m.shape[3])) for m in maps], axis=1)
        for maps in pyramids
    )
    return by_device(lambda flats, plan: roi_tiles.read(flats, plan, how))(flats, plan)


def region_levels(
    boxes: Float[Array, "*N 4"],
    min_level: int = 2,
    max_level: int = 5,
    canonical: float | int = 56.0,
    convention: Literal["mmdet", "torchvision"] = "mmdet",
) -> Int[Array, "*N"]:
    """The level that each region is read from: one coarser for each doubling of its side.

    Args:
        boxes: ``[..., 4]`` xyxy, pixels.
        min_level: Name of the finest level (2 for P2).
        max_level: Name of the coarsest level.
        canonical: Regions with a side (root of the area, pixels) under twice this are read from
            the finest level.
        convention: Where the guard against rounding is added: ``floor(log2(side / 56 + 1e-6))``
            ("mmdet") or ``floor(4 + log2(side / 224) + 1e-6)`` ("torchvision").

    Returns:
        ``[...]`` int32, 0 for ``min_level``.

    Source: Lin et al., FPN, equation 1; mmdetection
        ``models/roi_heads/roi_extractors/single_level_roi_extractor.py``; torchvision
        ``ops/poolers.py``.
    """
    sides = jnp.sqrt(jax.lax.stop_gradient(box_ops.area(jnp.nan_to_num(boxes))))
    octaves = 2.0 ** np.arange(1, max_level - min_level + 1)
    # Sides are compared with the side at which each coarser level begins, since a logarithm or a
    # quotient by a constant is rounded differently on different processors.
    begin = octaves - 1e-6 if convention == "mmdet" else octaves * 2.0**-1e-6
    reached = sides[..., None] >= jnp.asarray(canonical * begin, sides.dtype)
    return reached.sum(axis=-1, dtype=jnp.int32)
