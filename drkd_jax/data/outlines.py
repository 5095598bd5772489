"""The outlines of the drawn classes, and of the clutter that belongs to none.

Some classes differ by a detail only, a disc from a ring by its hole. Units: an outline spans about
-1..1 before it is turned and scaled.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

# One outline: closed contours, filled by the even-odd rule, so that a second one is a hole.
Outline = list[np.ndarray]


def _circle(radius: float = 1.0, start: float = 0.0, stop: float = 2 * np.pi) -> np.ndarray:
    angles = np.linspace(start, stop, 40)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _regular(corners: int, radius: float = 1.0) -> np.ndarray:
    angles = 2 * np.pi * (np.arange(corners) + 0.5) / corners
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _disc(rng: np.random.Generator) -> Outline:
    return [_circle()]


def _ring(rng: np.random.Generator) -> Outline:
    return [_circle(), _circle(rng.uniform(0.45, 0.65))]


def _square(rng: np.random.Generator) -> Outline:
    return [_regular(4) * (1.0, rng.uniform(0.75, 1.0))]


def _triangle(rng: np.random.Generator) -> Outline:
    return [_regular(3) * (1.0, rng.uniform(0.8, 1.1))]


def _star(rng: np.random.Generator) -> Outline:
    radius = np.where(np.arange(10) % 2, rng.uniform(0.38, 0.5), 1.0)
    return [_regular(10) * radius[:, None]]


def _cross(rng: np.random.Generator) -> Outline:
    a = rng.uniform(0.25, 0.4)  # half of an arm's width
    x = [a, a, 1, 1, a, a, -a, -a, -1, -1, -a, -a]
    y = [1, a, a, -a, -a, -1, -1, -a, -a, a, a, 1]
    return [np.stack([x, y], axis=1).astype(float)]


CLASSES: dict[str, Callable[[np.random.Generator], Outline]] = {
    "disc": _disc,
    "ring": _ring,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
}


def clutter(rng: np.random.Generator) -> Outline:
    """An outline of no class: a bar, a thin ellipse, a crescent, an angle or a half disc."""
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
    """Turns an outline, scales the longer side of its bounding box to ``size`` pixels, moves it.

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
