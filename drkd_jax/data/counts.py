"""What a run wants to know of its input: padding, boxes without a row, the loader's own rate.

All but the rate follows from the plan and the picture sizes, so every host has the numbers of the
whole global batch without reading a pixel.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Int64

from drkd_jax.data.config import PipelineConfig
from drkd_jax.data.plan import PlannedBatch
from drkd_jax.data.records import Source
from drkd_jax.data.transforms import fit


@dataclasses.dataclass(frozen=True)
class Fits:
    """How the pictures of a source lie on their canvases; n pictures."""

    indices: Int64[np.ndarray, "n"]  # positions in the source
    canvas: Int64[np.ndarray, "n"]
    pixels: Int64[np.ndarray, "n"]  # of the resized picture
    left_out: Int64[np.ndarray, "n"]  # boxes past max_boxes


def fit_all(source: Source, config: PipelineConfig, indices: np.ndarray) -> Fits:
    """Fits every picture of a source from its stated size."""
    indices = np.asarray(indices, np.int64)
    canvas, pixels, left_out = (np.zeros(len(indices), np.int64) for _ in range(3))
    known: dict[tuple[int, int], tuple[int, int]] = {}
    for at, index in enumerate(indices):
        _, height, width, num_boxes = source.meta(int(index))
        if (height, width) not in known:
            chosen, size = fit(
                height, width, config.shorter, config.longer, config.canvases, config.resize
            )
            known[height, width] = chosen, size[0] * size[1]
        canvas[at], pixels[at] = known[height, width]
        left_out[at] = max(0, num_boxes - config.max_boxes)
    return Fits(indices, canvas, pixels, left_out)


def padding_share(fits: Fits, config: PipelineConfig) -> float:
    """The share of the canvases' pixels that no picture covers, over a whole epoch.

    Filling pictures of the last batch of a canvas count as padding.
    """
    counts = np.bincount(fits.canvas, minlength=len(config.canvases))
    rows = -(-counts // config.batch_size) * config.batch_size
    areas = np.array([height * width for height, width in config.canvases])
    return 1 - float(fits.pixels.sum()) / float(max(1, (rows * areas).sum()))


class Counter:
    """Adds up the batches between two log lines."""

    def __init__(self, fits: Fits, config: PipelineConfig):
        self._config = config
        last = int(fits.indices.max(initial=-1))
        self._pixels, self._left_out = np.zeros(last + 1, np.int64), np.zeros(last + 1, np.int64)
        self._pixels[fits.indices] = fits.pixels
        self._left_out[fits.indices] = fits.left_out
        threads = min(config.num_threads, config.prefetch)
        self._readers = max(1, threads) * max(1, config.num_workers)
        self.reset()

    def reset(self) -> None:
        """Forgets what was counted."""
        self._batches = self._seen = self._left = self._rows = 0
        self._canvas = self._covered = self._seconds = 0.0

    def add(self, planned: PlannedBatch, rows: int, seconds: float) -> None:
        """A batch: as planned for all hosts, and the seconds that this host's rows took."""
        height, width = self._config.canvases[planned.canvas]
        real = planned.indices[planned.indices >= 0]
        self._batches += 1
        self._rows += rows
        self._canvas += float(len(planned.indices)) * height * width
        self._covered += float(self._pixels[real].sum())
        self._left += int(self._left_out[real].sum())
        self._seconds += seconds

    def take(self) -> dict[str, float]:
        """What was counted since the last time.

        Returns:
            ``padding``: share of the canvas pixels that no picture covers. ``boxes_past_max``:
            boxes a batch that found no row in ``max_boxes``. ``loader_rate``: pictures a second
            that this host's readers can deliver, going by the time they took.
        """
        if not self._batches:
            return {}
        values = {
            "padding": 1 - self._covered / self._canvas,
            "boxes_past_max": self._left / self._batches,
            "loader_rate": self._rows * self._readers / max(self._seconds, 1e-9),
        }
        self.reset()
        return values
