"""Draws boxes with class and score on an image, large enough to read.

Letters: H W pixels of the image, n boxes, K classes.

Detectors of small objects are inspected on small images, where a one-pixel line hides the object
and a label covers three neighbours. Small images are therefore enlarged before drawing, lines and
letters are sized for the *enlarged* image, and labels are placed so that they do not cover each
other.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

Colour = tuple[int, int, int]

FONT = cv2.FONT_HERSHEY_SIMPLEX
SHORTER = 480  # pixels: least length of a drawing's shorter side
LONGEST = 16384  # pixels: an image's longer side is not enlarged beyond this
_GAP = 8  # white pixels between and around images side by side

# Twelve colours that are easy to tell apart on grey, dark and textured backgrounds; RGB.
_PALETTE: tuple[Colour, ...] = (
    (230, 57, 70),
    (29, 120, 220),
    (46, 160, 67),
    (245, 160, 20),
    (150, 70, 200),
    (0, 175, 185),
    (235, 80, 170),
    (150, 105, 50),
    (165, 200, 30),
    (90, 100, 245),
    (255, 125, 95),
    (85, 130, 120),
)


def class_colour(label: int) -> Colour:
    """The colour of a class, the same in every image, figure and run.

    After the twelve hand-picked colours the hue advances by the golden angle, so that neighbouring
    classes never look alike.

    Args:
        label: 0..K-1.

    Returns:
        RGB, 0..255 each.
    """
    if label < len(_PALETTE):
        return _PALETTE[label]
    hue = int((label * 137.508) % 360 / 2)  # OpenCV counts hue in steps of two degrees
    value = (235, 185)[label // len(_PALETTE) % 2]
    pixel = cv2.cvtColor(np.array([[[hue, 190, value]]], np.uint8), cv2.COLOR_HSV2RGB)[0, 0]
    return int(pixel[0]), int(pixel[1]), int(pixel[2])


def enlarge(
    image: UInt8[np.ndarray, "H W 3"], shorter: int = SHORTER
) -> tuple[UInt8[np.ndarray, "H2 W2 3"], float]:
    """Enlarge an image until its shorter side has ``shorter`` pixels, or the longer `LONGEST`.

    Args:
        image: RGB.
        shorter: Pixels; an image that is already larger stays as it is.

    Returns:
        The image (always a copy) and the factor its coordinates are multiplied by, >= 1.
    """
    height, width = image.shape[:2]
    factor = min(shorter / max(1, min(height, width)), LONGEST / max(1, height, width))
    factor = max(1.0, factor)
    return scaled(image, factor) if factor > 1 else image.copy(), factor


def scaled(image: UInt8[np.ndarray, "H W 3"], factor: float) -> UInt8[np.ndarray, "H2 W2 3"]:
    """An image with both sides multiplied: interpolated if larger, averaged if smaller."""
    height, width = image.shape[:2]
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    how = cv2.INTER_CUBIC if factor > 1 else cv2.INTER_AREA
    return image if factor == 1 else cv2.resize(image, size, interpolation=how)


def draw_detections(
    image: UInt8[np.ndarray, "H W 3"],
    boxes: Float[np.ndarray, "n 4"],
    labels: Int[np.ndarray, "n"],
    scores: Float[np.ndarray, "n"] | None,
    names: Sequence[str],
    *,
    shorter: int = SHORTER,
    texts: Sequence[str] | None = None,
    text_size: float = 1.0,
) -> UInt8[np.ndarray, "H2 W2 3"]:
    """Draw boxes, one colour per class, each with its class and score.

    Args:
        image: RGB; it is not changed.
        boxes: xyxy, pixels of ``image``.
        labels: 0..K-1.
        scores: 0..1, or None for ground truth. The best box is drawn last, on top.
        names: The K class names.
        shorter: Pixels of the drawing's shorter side, see `enlarge`.
        texts: Text to write beside each box instead of class and score; "" writes nothing.
        text_size: Scale factor of the letters.

    Returns:
        RGB, enlarged as by ``enlarge(image, shorter)``.
    """
    canvas, factor = enlarge(image, shorter)
    height, width = canvas.shape[:2]
    thickness = max(2, round(min(height, width) / 300))
    order = np.arange(len(boxes)) if scores is None else np.argsort(scores, kind="stable")
    # cv2's coordinates are pixel centres: a box's edge at x is at x - 0.5 there.
    corners = np.rint(np.asarray(boxes, np.float64) * factor - 0.5).astype(np.int64)
    corners = np.clip(corners, 0, np.array([width, height, width, height]) - 1)
    for i in order:
        x1, y1, x2, y2 = (int(v) for v in corners[i])
        colour = class_colour(int(labels[i]))
        # A dark rim keeps the line visible on a background of its own colour.
        rim = [v // 3 for v in colour]
        cv2.rectangle(canvas, (x1, y1), (x2, y2), rim, thickness + 2, cv2.LINE_AA)
        cv2.rectangle(canvas, (x1, y1), (x2, y2), colour, thickness, cv2.LINE_AA)
    taken: list[tuple[int, int, int, int]] = []
    for i in order[::-1]:  # the best box is the first to choose a place for its label
        words = _words(int(labels[i]), None if scores is None else float(scores[i]), names)
        if texts is not None:
            words = texts[i]
        if words:
            _label(canvas, corners[i], words, class_colour(int(labels[i])), taken, text_size)
    return canvas


def side_by_side(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]], titles: Sequence[str]
) -> UInt8[np.ndarray, "H W 3"]:
    """Images in one row, each under its title, scaled to the height of the tallest.

    Args:
        images: RGB, any sizes, at least one.
        titles: One per image; longer ones are written smaller.

    Returns:
        RGB.

    Raises:
        ValueError: There is no image, or not one title for each image.
    """
    if not images or len(images) != len(titles):
        raise ValueError(f"{len(images)} images and {len(titles)} titles")
    tall = max(p.shape[0] for p in images)
    strip = max(24, round(tall / 14))
    columns = []
    for image, title in zip(images, titles, strict=True):
        height, width = image.shape[:2]
        if height != tall:
            width = max(1, round(width * tall / height))
            image = cv2.resize(image, (width, tall), interpolation=cv2.INTER_CUBIC)
        head = np.full((strip, width, 3), 255, np.uint8)
        size = strip / 40
        (wide, _), _ = cv2.getTextSize(title, FONT, size, 1)
        if wide > width - 4:
            size *= (width - 4) / wide
        (wide, high), _ = cv2.getTextSize(title, FONT, size, 1)
        where = (max(0, (width - wide) // 2), (strip + high) // 2)
        cv2.putText(head, title, where, FONT, size, (25, 25, 25), 1, cv2.LINE_AA)
        columns.append(np.concatenate([head, image]))
    white = np.full((strip + tall, _GAP, 3), 255, np.uint8)
    row = [white]
    for column in columns:
        row += [column, white]
    return np.pad(np.concatenate(row, axis=1), ((0, _GAP), (0, 0), (0, 0)), constant_values=255)


def _words(label: int, score: float | None, names: Sequence[str]) -> str:
    name = names[label] if 0 <= label < len(names) else f"class {label}"
    return name if score is None else f"{name} {score:.2f}"


def _label(
    canvas: UInt8[np.ndarray, "H W 3"],
    corners: Int[np.ndarray, "4"],
    words: str,
    colour: Colour,
    taken: list[tuple[int, int, int, int]],
    text_size: float = 1.0,
) -> None:
    """Write ``words`` on a plate beside a box, where it covers the other plates least."""
    height, width = canvas.shape[:2]
    size = text_size * max(0.36, min(height, width) / 1300)
    (wide, high), below = cv2.getTextSize(words, FONT, size, 1)
    wide, high = wide + 4, high + below + 2
    x1, y1, x2, y2 = (int(v) for v in corners)
    places = [(x1, y1 - high), (x1, y2), (x2 - wide, y1 - high), (x2 - wide, y2), (x2, y1)]
    places += [(x1 - wide, y1), (x1, y1), (x2, y2 - high), (x1 - wide, y2 - high)]

    def cost(place: tuple[int, int]) -> float:
        left, top = place
        outside = max(0, -left) + max(0, -top)
        outside += max(0, left + wide - width) + max(0, top + high - height)
        return 1e3 * outside + sum(_overlap((left, top, left + wide, top + high), t) for t in taken)

    left, top = min(places, key=cost)
    left, top = max(0, min(left, width - wide)), max(0, min(top, height - high))
    taken.append((left, top, left + wide, top + high))
    cv2.rectangle(canvas, (left, top), (left + wide - 1, top + high - 1), colour, cv2.FILLED)
    red, green, blue = colour
    bright = 0.299 * red + 0.587 * green + 0.114 * blue > 150
    ink = (15, 15, 15) if bright else (255, 255, 255)
    cv2.putText(canvas, words, (left + 2, top + high - below), FONT, size, ink, 1, cv2.LINE_AA)


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> int:
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    return max(0, wide) * max(0, high)
