"""The outlines of a drawn image, their positions, and tight boxes of their visible parts.

The layout is separate from painting, so that boxes are known without pixels. Some classes differ
only in a detail, such as a disc and a ring in the hole. An outline spans about -1..1 before it is
rotated and scaled. Letters: n boxes, h w pixels of a patch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import Float32, Int32, UInt8

_TOWARDS_LARGE = 0.6  # power of the uniform draw of log size; 1 would favour the smallest
_TURN = 0.4  # radians to either side
_MIN_SIDE = 6  # pixels that must be visible along both axes
_MIN_VISIBLE = 0.6  # share of an object that must stay visible
_TRIES = 6  # positions tried for an object before it is dropped
_SUBPIXEL = 4  # bits
_FINER = 4  # sub-pixels along each axis of a pixel


@dataclasses.dataclass(frozen=True)
class Difficulty:
    """The difficulty of drawn images. Ranges include both ends.

    Attributes:
        longer: pixels of an image's longer side.
        shorter: pixels of its shorter side.
        sizes: pixels of an object's longer side.
        objects: intended number of objects in an image.
        empty: intended share of images without objects.
        clutter: largest number of outlines that belong to no class.
        texture: factor on the contrast of clouds and stripes in the background.
        grain: strength of the noise over everything.
        swing: contrast of an object with what is below it.
    """

    longer: tuple[int, int] = (168, 192)
    shorter: tuple[int, int] = (112, 128)
    sizes: tuple[float, float] = (6.5, 80.0)
    objects: tuple[int, int] = (1, 8)
    empty: float = 0.06
    clutter: int = 3
    texture: float = 1.0
    grain: tuple[float, float] = (0.02, 0.16)
    swing: tuple[float, float] = (50.0, 130.0)


HARD = Difficulty()
# Images that a small detector learns within minutes.
EASY = Difficulty(
    longer=(128, 128),
    shorter=(128, 128),
    sizes=(14.0, 56.0),
    objects=(2, 7),
    empty=0.0,
    clutter=1,
    texture=0.4,
    grain=(0.02, 0.08),
    swing=(70.0, 130.0),
)


# One outline: closed contours, filled by the even-odd rule, so that a second one is a hole.
Outline = list[np.ndarray]


def _circle(radius: float = 1.0, start: float = 0.0, stop: float = 2 * np.pi) -> np.ndarray:
    angles = np.linspace(start, stop, 40)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _regular(corners: int) -> np.ndarray:
    angles = 2 * np.pi * (np.arange(corners) + 0.5) / corners
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _star(rng: np.random.Generator) -> Outline:
    radius = np.where(np.arange(10) % 2, rng.uniform(0.38, 0.5), 1.0)
    return [_regular(10) * radius[:, None]]


def _cross(rng: np.random.Generator) -> Outline:
    a = rng.uniform(0.25, 0.4)  # half of an arm's width
    x = [a, a, 1, 1, a, a, -a, -a, -1, -1, -a, -a]
    y = [1, a, a, -a, -a, -1, -1, -a, -a, a, a, 1]
    return [np.stack([x, y], axis=1).astype(float)]


CLASSES: dict[str, Callable[[np.random.Generator], Outline]] = {
    "disc": lambda rng: [_circle()],
    "ring": lambda rng: [_circle(), _circle(rng.uniform(0.45, 0.65))],
    "square": lambda rng: [_regular(4) * (1.0, rng.uniform(0.75, 1.0))],
    "triangle": lambda rng: [_regular(3) * (1.0, rng.uniform(0.8, 1.1))],
    "star": _star,
    "cross": _cross,
}


def clutter(rng: np.random.Generator) -> Outline:
    """An outline that belongs to no class: a bar, thin ellipse, crescent, angle or half disc."""
    kind = rng.integers(5)
    if kind == 0:
        return [_regular(4) * (1.4, rng.uniform(0.08, 0.25))]
    if kind == 1:
        return [_circle() * (1.0, rng.uniform(0.2, 0.45))]
    if kind == 2:
        inner = _circle(0.85, -1.9, 1.9)[::-1] + np.array([-0.35, 0.0])
        return [np.concatenate([_circle(1.0, -2.2, 2.2), inner])]
    if kind == 3:
        a = rng.uniform(0.2, 0.4)
        return [np.array([[-1, -1], [1, -1], [1, -1 + a], [-1 + a, -1 + a], [-1 + a, 1], [-1, 1]])]
    return [_circle(1.0, 0.0, np.pi)]


def placed(outline: Outline, size: float, angle: float, centre: tuple[float, float]) -> Outline:
    """Rotates an outline, scales its bounding box's longer side to ``size`` pixels, and moves it.

    Args:
        outline: contours around the origin.
        size: pixels.
        angle: radians.
        centre: x, y in pixels of the bounding box's centre.
    """
    cos, sin = np.cos(angle), np.sin(angle)
    turned = [contour @ np.array([[cos, sin], [-sin, cos]]) for contour in outline]
    low, high = turned[0].min(axis=0), turned[0].max(axis=0)
    factor = size / float((high - low).max())
    return [(contour - (low + high) / 2) * factor + np.array(centre) for contour in turned]


@dataclasses.dataclass(frozen=True)
class Coverage:
    """An outline on the image: coverage 0..255 over a patch."""

    rows: slice
    columns: slice
    alpha: UInt8[np.ndarray, "h w"]


@dataclasses.dataclass(frozen=True)
class Layout:
    """An image before it is painted; later objects are on top of earlier ones."""

    size: tuple[int, int]  # height, width
    clutter: list[Coverage]
    objects: list[Coverage]
    boxes: Float32[np.ndarray, "n 4"]  # xyxy, whole pixels
    labels: Int32[np.ndarray, "n"]


def lay_out(seed: int, index: int, difficulty: Difficulty = HARD) -> Layout:
    """Places clutter and objects.

    A box is tight around the pixels that its object covers at least by half and that no later
    object covers. Objects are only placed where they and all others stay visible to 60 %.
    """
    rng = np.random.default_rng([seed, index, 0])
    longer, shorter = _between(difficulty.longer, rng), _between(difficulty.shorter, rng)
    size = (longer, shorter) if rng.random() < 0.4 else (shorter, longer)
    things = [_scatter(size, rng) for _ in range(_between((0, difficulty.clutter), rng))]
    wanted = 0 if rng.random() < difficulty.empty else _between(difficulty.objects, rng)

    owner = np.zeros(size, np.uint8)  # 1 + the object seen at each pixel
    objects: list[Coverage] = []
    labels: list[int] = []
    full = np.zeros(0)  # pixels of each object before others covered it
    seen = np.zeros(0)
    makers = list(CLASSES.values())
    for _ in range(wanted):
        label = int(rng.integers(len(makers)))
        outline = makers[label](rng)
        least, most = difficulty.sizes
        extent = least * (most / least) ** (rng.random() ** _TOWARDS_LARGE)
        for _ in range(_TRIES):
            shape = placed(outline, extent, rng.uniform(-_TURN, _TURN), _somewhere(size, rng))
            found = _try(size, shape, owner, full, seen)
            if found is None:
                continue
            coverage, pixels, hidden = found
            owner[coverage.rows, coverage.columns][coverage.alpha >= 128] = len(objects) + 1
            seen = np.append(seen - hidden, pixels)
            full = np.append(full, outline_area(shape))
            objects.append(coverage)
            labels.append(label)
            break
    laid = _layout(size, things, objects, labels)
    kept = np.flatnonzero((laid.boxes[:, 2:] - laid.boxes[:, :2]).min(axis=1) >= _MIN_SIDE)
    if len(kept) == len(objects):
        return laid
    # A later object reduced this one below the smallest side: removing it uncovers others.
    return _layout(size, things, [objects[i] for i in kept], [labels[i] for i in kept])


def _layout(
    size: tuple[int, int], things: list[Coverage], objects: list[Coverage], labels: list[int]
) -> Layout:
    owner = np.zeros(size, np.uint8)
    for i, coverage in enumerate(objects):
        owner[coverage.rows, coverage.columns][coverage.alpha >= 128] = i + 1
    boxes = [_visible_box(owner, i + 1, c) for i, c in enumerate(objects)]
    rows = np.array(boxes, np.float32).reshape(-1, 4)
    return Layout(size, things, objects, rows, np.array(labels, np.int32))


def _between(ends: tuple[int, int], rng: np.random.Generator) -> int:
    return int(rng.integers(ends[0], ends[1] + 1))


def _somewhere(size: tuple[int, int], rng: np.random.Generator) -> tuple[float, float]:
    return float(rng.uniform(0, size[1])), float(rng.uniform(0, size[0]))


def _scatter(size: tuple[int, int], rng: np.random.Generator) -> Coverage:
    extent = float(np.exp(rng.uniform(np.log(6), np.log(80))))
    shape = placed(clutter(rng), extent, rng.uniform(0, 2 * np.pi), _somewhere(size, rng))
    return cover(size, shape)


def _try(
    size: tuple[int, int], shape: Outline, owner: np.ndarray, full: np.ndarray, seen: np.ndarray
) -> tuple[Coverage, int, np.ndarray] | None:
    """Coverage, visible pixels and what it would hide of each earlier object; None if too much."""
    coverage = cover(size, shape)
    mask = coverage.alpha >= 128
    pixels = int(np.count_nonzero(mask))
    if pixels < max(_MIN_SIDE, _MIN_VISIBLE * outline_area(shape)):
        return None
    below = owner[coverage.rows, coverage.columns]
    hidden = np.bincount(below[mask], minlength=len(seen) + 1)[1:]
    if np.any(seen - hidden < _MIN_VISIBLE * full):
        return None
    if min(_extent(mask, 0), _extent(mask, 1)) < _MIN_SIDE:
        return None
    return coverage, pixels, hidden


def outline_area(shape: Outline) -> float:
    """Area of an outline without holes, including parts off the canvas."""
    areas = [abs(cv2.contourArea(contour.astype(np.float32))) for contour in shape]
    return areas[0] - sum(areas[1:])


def cover(size: tuple[int, int], shape: Outline) -> Coverage:
    """Draws an outline, smooth at its edges, onto the patch of the image that it touches."""
    height, width = size
    left, top = shape[0].min(axis=0).tolist()
    right, bottom = shape[0].max(axis=0).tolist()
    x1, y1 = min(max(int(left) - 1, 0), width - 1), min(max(int(top) - 1, 0), height - 1)
    x2, y2 = min(max(int(right) + 2, x1 + 1), width), min(max(int(bottom) + 2, y1 + 1), height)
    # Filled on a finer grid and averaged: OpenCV's own antialiased filling is half a pixel too
    # large, which closes the holes of small rings. Its integer coordinates are pixel centres.
    fine = np.zeros(((y2 - y1) * _FINER, (x2 - x1) * _FINER), np.uint8)
    points = [
        np.round(((contour - (x1, y1)) * _FINER - 0.5) * (1 << _SUBPIXEL)).astype(np.int32)
        for contour in shape
    ]
    cv2.fillPoly(fine, points, 255, cv2.LINE_8, _SUBPIXEL)
    alpha = cv2.resize(fine, (x2 - x1, y2 - y1), interpolation=cv2.INTER_AREA)
    return Coverage(slice(y1, y2), slice(x1, x2), alpha)


def _extent(mask: np.ndarray, axis: int) -> int:
    at = np.flatnonzero(mask.any(axis=axis))
    return int(at[-1] - at[0] + 1) if len(at) else 0


def _visible_box(owner: np.ndarray, number: int, coverage: Coverage) -> tuple[int, int, int, int]:
    mask = owner[coverage.rows, coverage.columns] == number
    rows, columns = (np.flatnonzero(mask.any(axis=axis)).tolist() for axis in (1, 0))
    if not rows:
        return 0, 0, 0, 0
    x, y = coverage.columns.start, coverage.rows.start
    return x + columns[0], y + rows[0], x + columns[-1] + 1, y + rows[-1] + 1
