"""Implements the calls of `ops.onnx_calls` by ONNX's NonMaxSuppression and RoiAlign.

Letters: G groups of boxes with separate suppression, N boxes per group, K classes, B images,
R regions, h w C one map, S bins per side.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from drkd_jax.export.onnx_graph import Graph

_NONE = np.array(-1, np.float32)


def add_suppression(
    graph: Graph, shape: tuple[int, ...], classes: int, iou: float, *operands: str
) -> str:
    """Adds `onnx_calls.suppress`.

    The operator has the same rule: an overlap strictly above the threshold suppresses, and the
    lower row goes first among equal scores.

    Args:
        graph: the graph to extend.
        shape: shape of the scores, ``[..., N]``.
        classes: K, greater than every group id.
        iou: the threshold, a float32.
        operands: boxes, scores, valid, and groups if there are any.

    Returns:
        The flags, bool ``[..., N]``.
    """
    boxes, scores, valid, *groups = operands
    G, N = math.prod(shape[:-1]), shape[-1]
    rows = np.array([G, 1, N])
    boxes = graph.add("Reshape", boxes, np.array([G, N, 4]))
    counts = graph.add("Reshape", valid, rows)
    if groups:
        own = graph.add("Reshape", groups[0], rows)
        own = graph.add("Equal", own, np.arange(classes, dtype=np.int32)[:, None])
        counts = graph.add("And", own, counts)
    ranked = graph.add("Where", counts, graph.add("Reshape", scores, rows), _NONE)
    limits = np.array([N]), np.array([iou], np.float32), np.array([-0.5], np.float32)
    selected = graph.add("NonMaxSuppression", boxes, ranked, *limits)
    places = graph.add("Gather", selected, np.array([0, 2]), axis=1)
    flags = graph.add("Expand", np.array(True), graph.add("Shape", selected, end=1))
    kept = graph.add("ScatterND", np.zeros((G, N), bool), places, flags)
    return graph.add("Reshape", kept, np.array(shape))


def add_regions(
    graph: Graph,
    shape: tuple[int, ...],
    boxes: str,
    levels: str,
    maps: list[str],
    *,
    strides: tuple[float | int, ...],
    bins: int,
    samples: int,
    aligned: bool,
) -> str:
    """Adds `onnx_calls.align`: reads the regions level by level, and restores their order.

    Args:
        graph: the graph to extend.
        shape: shape of the result, ``[B, R, S, S, C]``.
        boxes: ``[B, R, 4]``.
        levels: ``[B, R]``.
        maps: ``[B, h, w, C]`` each.
        strides: see `ops.roi_align.roi_align`, also for the arguments below.
        bins: S.
        samples: samples per bin and axis; 0: adaptive.
        aligned: whether pixel centres lie at half coordinates.

    Returns:
        The regions, float32.
    """
    B, R = shape[:2]
    boxes = graph.add("Reshape", boxes, np.array([B * R, 4]))
    levels = graph.add("Reshape", levels, np.array([B * R]))
    images = graph.constant(np.repeat(np.arange(B), R))
    how: dict[str, Any] = {
        "output_height": bins,
        "output_width": bins,
        "sampling_ratio": samples,
        "coordinate_transformation_mode": "half_pixel" if aligned else "output_half_pixel",
    }
    parts, rows = [], []
    for level, (plane, stride) in enumerate(zip(maps, strides, strict=True)):
        here = graph.add("Equal", levels, np.array(level, np.int32))
        own = graph.add("Reshape", graph.add("NonZero", here), np.array([-1]))
        read = graph.add(
            "RoiAlign",
            graph.add("Transpose", plane, perm=[0, 3, 1, 2]),
            graph.add("Gather", boxes, own),
            graph.add("Gather", images, own),
            spatial_scale=1.0 / stride,
            **how,
        )
        parts.append(read)
        rows.append(own)
    regions = graph.add("Concat", *parts, axis=0)
    numbers = np.arange(B * R)
    place = graph.add("ScatterElements", numbers, graph.add("Concat", *rows, axis=0), numbers)
    regions = graph.add("Gather", regions, place)
    regions = graph.add("Transpose", regions, perm=[0, 2, 3, 1])
    return graph.add("Reshape", regions, np.array(shape))
