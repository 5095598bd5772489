"""Resize by a library's rule, choose a canvas, boxes that follow.

Letters: h w picture pixels, n boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, Float32, UInt8

#: Rules for the sides of a resized picture and for what is interpolated.
#:
#: "mmdet": a side is rounded half up; bytes are interpolated and rounded to bytes again.
#: "torchvision": a side is cut to whole pixels, and misses one where its scale is rounded (of 427
#: pixels it makes 799 for 800); floats are interpolated and stay floats.
#: "stretch": every picture gets the same sides, whatever its shape (mmdetection's ``Resize`` with
#: ``keep_ratio=False``); bytes, as under "mmdet".
RULES = ("mmdet", "torchvision", "stretch")


def scaled_side(side: int, scale: float, rule: str = "mmdet") -> int:
    """A side after resizing: rounded half up, or cut ("torchvision"); never 0.

    Source: open-mmlab/mmcv, mmcv/image/geometric.py (``int(side * scale + 0.5)``); PyTorch,
    torch/nn/functional.py (``interpolate`` with ``recompute_scale_factor``).
    """
    return max(1, int(side * scale + (0.0 if rule == "torchvision" else 0.5)))


def resize_scale(height: int, width: int, shorter: int, longer: int, rule: str = "mmdet") -> float:
    """The scale that brings the shorter side to ``shorter``, or less for ``longer`` to hold.

    Source: open-mmlab/mmcv, mmcv/image/geometric.py (``rescale_size``); pytorch/vision,
    torchvision/models/detection/transform.py (``_resize_image_and_masks``, a number over a float32
    tensor: PyTorch multiplies by the reciprocal).
    """
    large, small = max(height, width), min(height, width)
    if rule != "torchvision":
        return min(longer / large, shorter / small)
    per_pixel = np.float32(1) / np.array([large, small], np.float32)
    return float(np.min(per_pixel * np.array([longer, shorter], np.float32)))


def fit(
    height: int,
    width: int,
    shorter: int,
    longer: int,
    canvases: Sequence[tuple[int, int]],
    rule: str = "mmdet",
) -> tuple[int, tuple[int, int]]:
    """Chooses a canvas for a picture and its size on it.

    The smallest canvas that holds the resized picture; of equal ones that of its own orientation
    (square pictures count as landscape, as in mmdetection). Where none holds it, the canvas of
    its orientation that lets it stay largest, and the picture is scaled down to fit. Under
    "stretch" the size asked for takes the place of the resized picture's.

    Args:
        height: source pixels.
        width: source pixels.
        shorter: wanted pixels of the shorter side; under "stretch" the height.
        longer: limit of the longer side; under "stretch" the width.
        canvases: (height, width) of each canvas.
        rule: one of `RULES`.

    Returns:
        The canvas's position, and (height, width) of the picture on it.
    """
    if rule == "stretch":
        height, width, scale = shorter, longer, 1.0
    else:
        scale = resize_scale(height, width, shorter, longer, rule)
    size = scaled_side(height, scale, rule), scaled_side(width, scale, rule)

    def mismatch(canvas: tuple[int, int]) -> bool:
        return (width < height) != (canvas[1] < canvas[0])

    holding = [c for c in canvases if size[0] <= c[0] and size[1] <= c[1]]
    if holding:
        best = min(holding, key=lambda c: (c[0] * c[1], mismatch(c)))
        return list(canvases).index(best), size
    best = min(
        canvases,
        key=lambda c: (mismatch(c), -min(c[0] / height, c[1] / width), c[0] * c[1]),
    )
    scale = min(scale, best[0] / height, best[1] / width)
    sides = scaled_side(height, scale, rule), scaled_side(width, scale, rule)
    return list(canvases).index(best), (min(sides[0], best[0]), min(sides[1], best[1]))


def resize(image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int], dtype: Any) -> np.ndarray:
    """A picture of another (height, width), bilinear without antialias, in ``dtype``.

    Bytes are rounded, floats are not. Where the size is right the picture comes back as it is.
    """
    given = image.astype(dtype, copy=False)
    if image.shape[:2] == size:
        return given
    return cv2.resize(given, size[::-1], interpolation=cv2.INTER_LINEAR)


def scale_boxes(
    boxes: Float32[np.ndarray, "n 4"], scale: Float[np.ndarray, "2"], size: tuple[int, int]
) -> Float32[np.ndarray, "n 4"]:
    """Boxes from source pixels to canvas pixels, kept inside the resized picture.

    Args:
        boxes: xyxy, source pixels.
        scale: canvas pixels per source pixel along x and y.
        size: (height, width) of the picture on the canvas.
    """
    height, width = size
    limit = np.array([width, height, width, height], np.float32)
    return np.clip(boxes * np.tile(scale, 2), 0, limit).astype(np.float32)
