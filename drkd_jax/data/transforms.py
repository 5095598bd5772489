"""Resize by a library's rule, choose a canvas; another scale and other colours by chance.

What is random comes from the plan, so it is a function of (seed, epoch, picture). Boxes follow.
Letters: h w picture pixels, n boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, UInt8

#: Rules for the sides of a resized picture and for what is interpolated.
#:
#: "mmdet": a side is rounded half up; bytes are interpolated and rounded to bytes again.
#: "torchvision": a side is cut to whole pixels, and misses one where its scale is rounded (of 427
#: pixels it makes 799 for 800); floats are interpolated and stay floats.
#: "stretch": every picture gets the same sides, whatever its shape (mmdetection's ``Resize`` with
#: ``keep_ratio=False``); bytes, as under "mmdet".
RULES = ("mmdet", "torchvision", "stretch")
#: Random numbers a picture: its scale, the place of a crop along y and x; brightness, contrast,
#: saturation. Each is uniform in 0..1.
NUM_CHANCES = 6
#: A box that a crop leaves less than this share of its area is dropped.
MIN_VISIBLE = 0.3
_GREY = np.array([0.299, 0.587, 0.114])  # ITU-R 601, of red, green and blue

Chances = Float64[np.ndarray, "6"]


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


class Window(NamedTuple):
    """What of a resized picture is laid on the canvas."""

    full: tuple[int, int]  # height and width of the resized picture
    corner: tuple[int, int]  # y and x of the window in it
    size: tuple[int, int]  # height and width of the window


def window(
    size: tuple[int, int],
    canvas: tuple[int, int],
    limits: tuple[float | int, float | int],
    chances: Chances,
) -> Window:
    """Another scale for a picture, and a random crop where the canvas does not hold it.

    A picture that is smaller than before stays in the canvas's top left corner.

    Args:
        size: height and width without jitter.
        canvas: height and width of the canvas.
        limits: least and largest factor of the sides.
        chances: the picture's random numbers.
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
    """The window of a picture (``uint8[h, w, 3]``), resized, in ``dtype``."""
    (y, x), (height, width) = found.corner, found.size
    return resize(image, found.full, dtype)[y : y + height, x : x + width]


def crop_boxes(
    boxes: Float32[np.ndarray, "n 4"], found: Window
) -> tuple[Float32[np.ndarray, "n 4"], Bool[np.ndarray, "n"]]:
    """Boxes of the whole resized picture as the window has them.

    Args:
        boxes: xyxy, pixels of the resized picture.
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
    """Other brightness, contrast and saturation: one affine map of the colours, clipped once.

    Brightness multiplies by b; contrast moves every colour away from the picture's mean grey by
    c; saturation away from its own grey by s. Each factor is uniform in 1 - strength ... 1 +
    strength. The order never changes, unlike torchvision's `ColorJitter`, and nothing is clipped
    in between.

    Args:
        image: ``[h, w, 3]``, RGB, bytes or floats of 0 to 255.
        strength: 0 to 1.
        chances: the picture's random numbers.

    Returns:
        The picture in the dtype it came in.
    """
    b, c, s = 1 + strength * (2 * chances[3:6] - 1)
    matrix = b * c * (s * np.eye(3) + (1 - s) * _GREY)
    grey = float(np.dot(cv2.mean(image)[:3], _GREY))
    offset = np.full((3, 1), (1 - c) * b * grey)
    # OpenCV rounds and clips bytes by itself.
    changed = cv2.transform(image, np.hstack([matrix, offset]))
    return changed if image.dtype == np.uint8 else np.clip(changed, 0, 255)
