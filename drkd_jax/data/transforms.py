"""Resizes images by a library's rule, chooses canvases, and applies random scale and colours.

All random numbers come from the plan, so they depend only on (seed, epoch, image). Boxes are
transformed with their image.
Letters: h w image pixels, n boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, UInt8

#: Rules for the size of a resized image and for the interpolation.
#:
#: "mmdet": a side is rounded half up; bytes are interpolated and rounded to bytes again.
#: "torchvision": a side is truncated to whole pixels, which may lose one if the scale is rounded
#: (427 pixels become 799, not 800); floats are interpolated and stay floats.
#: "stretch": every image gets the same size, whatever its shape (mmdetection's ``Resize`` with
#: ``keep_ratio=False``); bytes, as with "mmdet".
RULES = ("mmdet", "torchvision", "stretch")
#: Random numbers per image: its scale, the position of a crop along y and x; brightness,
#: contrast, saturation. Each is uniform in 0..1.
NUM_CHANCES = 6
#: A box with less than this share of its area inside a crop is dropped.
MIN_VISIBLE = 0.3
_GREY = np.array([0.299, 0.587, 0.114])  # ITU-R 601, of red, green and blue

Chances = Float64[np.ndarray, "6"]


def scaled_side(side: int, scale: float, rule: str = "mmdet") -> int:
    """A side after resizing: rounded half up, or truncated ("torchvision"); never 0.

    Source: open-mmlab/mmcv, mmcv/image/geometric.py (``int(side * scale + 0.5)``); PyTorch,
    torch/nn/functional.py (``interpolate`` with ``recompute_scale_factor``).
    """
    return max(1, int(side * scale + (0.0 if rule == "torchvision" else 0.5)))


def resize_scale(height: int, width: int, shorter: int, longer: int, rule: str = "mmdet") -> float:
    """The scale that makes the shorter side ``shorter``, or less, to respect ``longer``.

    Source: open-mmlab/mmcv, mmcv/image/geometric.py (``rescale_size``); pytorch/vision,
    torchvision/models/detection/transform.py (``_resize_image_and_masks``: to divide a number by a
    float32 tensor, PyTorch multiplies by the reciprocal).
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
    """Chooses a canvas for an image and its size on it.

    This is the smallest canvas that can hold the resized image; of equally large ones, that of
    its own orientation (square images count as landscape, as in mmdetection). If none can hold
    it, it is the canvas of its orientation on which it stays largest, and the image is scaled
    down to fit. With "stretch" the configured size replaces that of the resized image.

    Args:
        height: source pixels.
        width: source pixels.
        shorter: wanted pixels of the shorter side; with "stretch" the height.
        longer: limit of the longer side; with "stretch" the width.
        canvases: (height, width) of each canvas.
        rule: one of `RULES`.

    Returns:
        The canvas's index, and (height, width) of the image on it.
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
    """Resizes an image to (height, width), bilinear without antialiasing, in ``dtype``.

    Bytes are rounded, floats are not. An image of the right size is returned unchanged.
    """
    given = image.astype(dtype, copy=False)
    if image.shape[:2] == size:
        return given
    return cv2.resize(given, size[::-1], interpolation=cv2.INTER_LINEAR)


def scale_boxes(
    boxes: Float32[np.ndarray, "n 4"], scale: Float[np.ndarray, "2"], size: tuple[int, int]
) -> Float32[np.ndarray, "n 4"]:
    """Converts boxes from source to canvas pixels, clipped to the resized image.

    Args:
        boxes: xyxy, source pixels.
        scale: canvas pixels per source pixel along x and y.
        size: (height, width) of the image on the canvas.
    """
    height, width = size
    limit = np.array([width, height, width, height], np.float32)
    return np.clip(boxes * np.tile(scale, 2), 0, limit).astype(np.float32)


class Window(NamedTuple):
    """The part of a resized image that is placed on the canvas."""

    full: tuple[int, int]  # height and width of the resized image
    corner: tuple[int, int]  # y and x of the window in it
    size: tuple[int, int]  # height and width of the window


def window(
    size: tuple[int, int],
    canvas: tuple[int, int],
    limits: tuple[float | int, float | int],
    chances: Chances,
) -> Window:
    """Chooses a random scale for an image, and a random crop if it exceeds the canvas.

    An image that becomes smaller stays in the canvas's top left corner.

    Args:
        size: height and width without jitter.
        canvas: height and width of the canvas.
        limits: least and largest factor of the sides.
        chances: the image's random numbers.
    """
    factor = limits[0] + (limits[1] - limits[0]) * chances[0]
    full = tuple(max(1, round(side * factor)) for side in size)
    inner = tuple(min(side, room) for side, room in zip(full, canvas, strict=True))
    corner = tuple(
        int((side - kept + 1) * chance)
        for side, kept, chance in zip(full, inner, chances[1:3], strict=True)
    )
    return Window((full[0], full[1]), (corner[0], corner[1]), (inner[0], inner[1]))


def cut_out(image: Any, found: Window, dtype: Any) -> Any:
    """The window of an image (``uint8[h, w, 3]``), resized, in ``dtype``."""
    (y, x), (height, width) = found.corner, found.size
    return resize(image, found.full, dtype)[y : y + height, x : x + width]


def crop_boxes(
    boxes: Float32[np.ndarray, "n 4"], found: Window
) -> tuple[Float32[np.ndarray, "n 4"], Bool[np.ndarray, "n"]]:
    """Converts boxes of the whole resized image to those of the window.

    Args:
        boxes: xyxy, pixels of the resized image.
        found: the window.

    Returns:
        (boxes inside the window, xyxy, its pixels; which of them keep at least `MIN_VISIBLE` of
        their area).
    """
    (y, x), (height, width) = found.corner, found.size
    moved = boxes - np.array([x, y, x, y], np.float32)
    inside = np.clip(moved, 0, np.array([width, height, width, height], np.float32))
    if found.size == found.full:
        return inside, np.ones(len(boxes), bool)
    seen, whole = (np.prod(xyxy[:, 2:] - xyxy[:, :2], axis=1) for xyxy in (inside, boxes))
    return inside, (seen > 0) & (seen >= MIN_VISIBLE * whole)


def recolour(image: Any, strength: float | int, chances: Chances) -> Any:
    """Random brightness, contrast and saturation: one affine map of the colours, clipped once.

    Brightness multiplies by b; contrast scales the distance of every colour from the image's mean
    grey by c; saturation that from its own grey by s. Each factor is uniform in 1 - strength ...
    1 + strength. Unlike torchvision's `ColorJitter`, the order is fixed and there is no clipping in
    between.

    Args:
        image: ``[h, w, 3]``, RGB, bytes or floats of 0 to 255.
        strength: 0 to 1.
        chances: the image's random numbers.

    Returns:
        The image in the dtype it came in.
    """
    b, c, s = 1 + strength * (2 * chances[3:6] - 1)
    matrix = b * c * (s * np.eye(3) + (1 - s) * _GREY)
    grey = float(np.dot(cv2.mean(image)[:3], _GREY))
    offset = np.full((3, 1), (1 - c) * b * grey)
    # OpenCV itself rounds and clips bytes.
    changed = cv2.transform(image, np.hstack([matrix, offset]))
    return changed if image.dtype == np.uint8 else np.clip(changed, 0, 255)
