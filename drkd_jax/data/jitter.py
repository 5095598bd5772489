"""Training pictures of another scale and other colours, by chance, with boxes that follow.

A picture's numbers come from the plan, so they are a function of (seed, epoch, picture); with
their limits at their defaults nothing here is called.

Letters: h w picture pixels, n boxes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Float64

from drkd_jax.data.transforms import resize

#: Random numbers a picture: its scale, the place of a crop along y and x; brightness, contrast,
#: saturation. Each is uniform in 0..1.
NUM_CHANCES = 6
#: A box that a crop leaves less than this share of its area is dropped.
MIN_VISIBLE = 0.3
_GREY = np.array([0.299, 0.587, 0.114])  # ITU-R 601, of red, green and blue

Chances = Float64[np.ndarray, "6"]


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
