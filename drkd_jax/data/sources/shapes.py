"""``shapes:N[:SEED[:easy]]``: images drawn by the program, a pure function of (seed, index).

Six classes of outlines over textured backgrounds with clutter, so that detectors can be
trained and compared without a data set. Images are about 192x128 pixels, landscape or portrait,
with no box or 1 to 8. Most boxes are small in COCO's sense (under 32 x 32 pixels). Easy images
are 128x128 pixels, with 2 to 7 objects that stand out from calmer backgrounds.
Letters: H W pixels.
"""

from __future__ import annotations

import functools
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from drkd_jax.data.sources.layout import CLASSES, EASY, HARD, Coverage, Difficulty, Layout, lay_out
from drkd_jax.data.sources.records import AnnotationTable, Category, Record, Source

_FAINT = (20.0, 70.0)  # contrast of clutter
_KEPT = 4096  # drawn images held in memory, about 75 kB each


class ShapesSource(Source):
    """N drawn images.

    Args:
        num_images: the number of images.
        seed: every seed gives other images.
        easy: whether to draw easy ones.
    """

    def __init__(self, num_images: int, seed: int = 0, *, easy: bool = False):
        self._num_images, self._seed = num_images, seed
        self._difficulty = EASY if easy else HARD
        self._drawn: dict[int, Record] = {}
        self.spec = f"shapes:{num_images}:{seed}" + (":easy" if easy else "")
        self.categories = tuple(Category(i + 1, name) for i, name in enumerate(CLASSES))

    def __len__(self) -> int:
        return self._num_images

    @functools.cached_property
    def table(self) -> AnnotationTable:  # type: ignore[override]  # made once, where wanted
        """All boxes, from the layout of every image, without painting it."""
        layouts = [lay_out(self._seed, index, self._difficulty) for index in range(len(self))]
        boxes = np.concatenate([layout.boxes for layout in layouts]).astype(np.float64)
        bbox = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
        counts = [len(layout.labels) for layout in layouts]
        return AnnotationTable(
            categories=self.categories,
            names=tuple(self._name(index) for index in range(len(self))),
            image_ids=np.arange(len(self), dtype=np.int64),
            sizes=np.array([layout.size for layout in layouts], np.int64),
            starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            ids=np.arange(1, len(bbox) + 1, dtype=np.int64),
            bbox=bbox,
            area=bbox[:, 2] * bbox[:, 3],
            labels=np.concatenate([layout.labels for layout in layouts]),
            crowd=np.zeros(len(bbox), bool),
        )

    def _name(self, index: int) -> str:
        return f"shapes-{self._seed}-{index:06d}.png"

    def record(self, index: int) -> Record:
        """Draws image ``index``, or returns it from memory; its pixels are read-only."""
        record = self._drawn.get(index)
        if record is None:
            record = self._draw(index)
            if len(self._drawn) < _KEPT:
                self._drawn[index] = record
        return record

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_drawn": {}}  # worker processes draw for themselves

    def _draw(self, index: int) -> Record:
        layout = lay_out(self._seed, index, self._difficulty)
        rng = np.random.default_rng([self._seed, index, 1])
        image = paint(layout, rng, self._difficulty)
        image.flags.writeable = False
        crowd = np.zeros(len(layout.labels), bool)
        return Record(image, layout.boxes, layout.labels, crowd, index, self._name(index))


def paint(
    layout: Layout, rng: np.random.Generator, difficulty: Difficulty = HARD
) -> UInt8[np.ndarray, "H W 3"]:
    """Paints background, clutter and objects, then applies blur and noise to everything."""
    image = _ground(layout.size, rng, difficulty.texture)
    for coverage in layout.clutter:
        lay_on(image, coverage, rng, _FAINT)
    for coverage in layout.objects:
        lay_on(image, coverage, rng, difficulty.swing)
    if rng.random() < 0.5:
        image = cv2.GaussianBlur(image, (3, 3), rng.uniform(0.3, 0.8))
    grain = np.frombuffer(rng.bytes(image.size), np.uint8).reshape(image.shape)
    strength = rng.uniform(*difficulty.grain)
    return cv2.addWeighted(image, 1.0, grain, strength, -127.5 * strength, dtype=cv2.CV_8U)


def _ground(size: tuple[int, int], rng: np.random.Generator, texture: float) -> np.ndarray:
    """Clouds of two scales around a colour, often with stripes or checks. Float32, 0..255."""
    height, width = size
    colour = rng.uniform(50, 205, 3).astype(np.float32)
    image = np.empty((height, width, 3), np.float32)
    image[:] = colour
    coarse, fine = rng.uniform(-0.5, 0.5, (4, 4, 3)), rng.uniform(-0.5, 0.5, (20, 20, 3))
    clouds = cv2.resize(
        coarse * (texture * rng.uniform(10, 70)), (20, 20), interpolation=cv2.INTER_CUBIC
    )
    clouds = (clouds + fine * (texture * rng.uniform(0, 35))).astype(np.float32)
    image += cv2.resize(clouds, (width, height), interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.5:
        wave = _stripes(size, rng.uniform(5, 30), rng)
        if rng.random() < 0.4:
            wave = wave * _stripes(size, rng.uniform(5, 30), rng)
        tint = rng.uniform(-0.5, 0.5, 3).astype(np.float32) * np.float32(
            texture * rng.uniform(15, 70)
        )
        image += wave[..., None] * tint
    return image


def _stripes(size: tuple[int, int], period: float, rng: np.random.Generator) -> np.ndarray:
    """A wave of -1..1 over a patch, in a random direction, smooth or hard."""
    angle, phase = rng.uniform(0, 2 * np.pi, 2)
    pace = 2 * np.pi / period
    along_y = np.arange(size[0], dtype=np.float32) * np.float32(pace * np.sin(angle))
    along_x = np.arange(size[1], dtype=np.float32) * np.float32(pace * np.cos(angle))
    wave = np.sin(along_y[:, None] + along_x[None, :] + np.float32(phase))
    return np.sign(wave) if rng.random() < 0.5 else wave


def lay_on(
    image: Float32[np.ndarray, "H W 3"],
    coverage: Coverage,
    rng: np.random.Generator,
    contrast: tuple[float, float],
) -> None:
    """Colours an outline in contrast to what is below it, plain, shaded or striped."""
    alpha = coverage.alpha
    below = image[coverage.rows, coverage.columns]
    cover = alpha.astype(np.float32)[..., None] / 255
    mean = below.mean(axis=(0, 1))
    swing = rng.uniform(-1, 1, 3)
    swing *= rng.uniform(*contrast) / np.abs(swing).max()
    # Away from the limits of the colour range, so that clipping does not reduce the contrast.
    colour = np.where((mean + swing < 8) | (mean + swing > 247), mean - swing, mean + swing)
    shade = np.empty_like(below)
    shade[:] = colour
    kind = rng.random()
    if kind < 0.25:
        wave = _stripes(alpha.shape, rng.uniform(3, 10), rng)
        shade += wave[..., None] * np.float32(rng.uniform(8, 30))
    elif kind < 0.5:
        slope = np.linspace(-1, 1, alpha.shape[1], dtype=np.float32)[None, :, None]
        shade += slope * np.float32(rng.uniform(-30, 30))
    image[coverage.rows, coverage.columns] = below + (shade - below) * cover
