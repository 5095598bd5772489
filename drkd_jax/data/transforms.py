"""Resize by mmdetection's rule, choose a canvas, lay the picture into it.

Letters: H W canvas pixels, h w picture pixels, n boxes.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float, Float32, UInt8


def scaled_side(side: int, scale: float) -> int:
    """A side after resizing: rounded half up, never 0.

    Source: open-mmlab/mmcv, mmcv/image/geometric.py (``int(side * scale + 0.5)``).
    """
    return max(1, int(side * scale + 0.5))


def resize_scale(height: int, width: int, shorter: int, longer: int) -> float:
    """The scale that brings the shorter side to ``shorter``, or less for ``longer`` to hold.

    Source: open-mmlab/mmcv, mmcv/image/geometric.py (``rescale_size``).
    """
    return min(longer / max(height, width), shorter / min(height, width))


def fit(
    height: int, width: int, shorter: int, longer: int, canvases: Sequence[tuple[int, int]]
) -> tuple[int, tuple[int, int]]:
    """Chooses a canvas for a picture and its size on it.

    The smallest canvas that holds the resized picture; of equal ones that of its own orientation
    (square pictures count as landscape, as in mmdetection). Where none holds it, the canvas of
    its orientation that lets it stay largest, and the picture is scaled down to fit.

    Args:
        height: source pixels.
        width: source pixels.
        shorter: wanted pixels of the shorter side.
        longer: limit of the longer side.
        canvases: (height, width) of each canvas.

    Returns:
        The canvas's position, and (height, width) of the picture on it.
    """
    scale = resize_scale(height, width, shorter, longer)
    size = scaled_side(height, scale), scaled_side(width, scale)

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
    size = min(scaled_side(height, scale), best[0]), min(scaled_side(width, scale), best[1])
    return list(canvases).index(best), size


def place(
    canvas: UInt8[np.ndarray, "H W 3"],
    image: UInt8[np.ndarray, "h w 3"],
    size: tuple[int, int],
) -> None:
    """Resizes a picture (bilinear, uint8, no antialias) into the canvas's top left corner."""
    height, width = size
    if image.shape[:2] != size:
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    canvas[:height, :width] = image


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
