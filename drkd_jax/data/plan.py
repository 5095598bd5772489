"""Plans which images make up batch number i, as a pure function of (seed, i).

All images of a batch have one canvas. In every epoch the images are permuted, assigned to their
canvases in that order and split into batches, and the batches are shuffled. The last batch of a
canvas may not be full: its missing rows are -1. All counts follow from the plan and the image
sizes, so every host knows those of the whole global batch without reading a pixel.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

from drkd_jax.data.checking.findings import SMALLEST_SIDE, require_boxes
from drkd_jax.data.config import PipelineConfig
from drkd_jax.data.sources.records import Source
from drkd_jax.data.transforms import NUM_CHANCES, fit
from drkd_jax.errors import UserError


class PlannedBatch(NamedTuple):
    """The content of a batch; n rows, -1 for missing images."""

    canvas: int
    indices: Int64[np.ndarray, "n"]
    flip: Bool[np.ndarray, "n"]
    chances: Float64[np.ndarray, "n 6"] | None = None  # random numbers for jitter, if it is used


class _Epoch(NamedTuple):
    canvas: Int64[np.ndarray, "batches"]
    indices: Int64[np.ndarray, "batches n"]
    flip: Bool[np.ndarray, "batches n"]
    chances: Float64[np.ndarray, "batches n 6"] | None


class BatchPlan:
    """Batches of one canvas each, for every epoch, by number.

    Args:
        indices: positions in the source of the images to use.
        canvas_of: the canvas of each of them.
        batch_size: rows of a batch over all hosts.
        seed: seed of permutation, batch order and flips.
        flip: probability that an image is mirrored.
        shuffle: False keeps the source's order, canvas after canvas.
        jitter: whether every image gets random numbers for its scale and colours.
    """

    def __init__(
        self,
        indices: Int64[np.ndarray, "images"],
        canvas_of: Int64[np.ndarray, "images"],
        batch_size: int,
        *,
        seed: int = 0,
        flip: float = 0.0,
        shuffle: bool = True,
        jitter: bool = False,
    ):
        self._indices, self._canvas_of, self._batch_size = indices, canvas_of, batch_size
        self._seed, self._flip, self._shuffle, self._jitter = seed, flip, shuffle, jitter
        counts = np.bincount(canvas_of) if len(canvas_of) else np.zeros(0, np.int64)
        self.steps_per_epoch = int(np.sum(-(-counts // batch_size)))
        self._epochs: OrderedDict[int, _Epoch] = OrderedDict()

    def batch(self, number: int) -> PlannedBatch:
        """Batch ``number``, counted from 0 through all epochs."""
        number_of_epoch, position = divmod(number, self.steps_per_epoch)
        epoch = self._epochs.get(number_of_epoch)
        if epoch is None:  # two threads may both build it, harmlessly, as the arrays are equal
            epoch = self._epochs[number_of_epoch] = self._build(number_of_epoch)
            while len(self._epochs) > 2:
                with contextlib.suppress(KeyError):
                    self._epochs.popitem(last=False)
        return PlannedBatch(
            int(epoch.canvas[position]),
            epoch.indices[position],
            epoch.flip[position],
            None if epoch.chances is None else epoch.chances[position],
        )

    def _build(self, number: int) -> _Epoch:
        order = np.arange(len(self._indices))
        flip = np.zeros(len(self._indices), bool)
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([self._seed, number])))
        if self._shuffle:
            order = rng.permutation(order)
        if self._flip:
            # By image, not by row, so that it does not depend on batch size or number of hosts.
            flip = rng.random(len(order)) < self._flip
        chances = None
        if self._jitter:
            # Separate random numbers, so that order and flips are as in a run without jitter.
            own = np.random.SeedSequence([self._seed, number, 1])
            rng_of_jitter = np.random.Generator(np.random.Philox(own))
            chances = rng_of_jitter.random((len(order), NUM_CHANCES))
        canvases, batches = [], []
        for canvas in np.unique(self._canvas_of):
            members = order[self._canvas_of[order] == canvas]
            missing = -len(members) % self._batch_size
            rows = np.concatenate([members, np.full(missing, -1)]).reshape(-1, self._batch_size)
            batches.append(rows)
            canvases.append(np.full(len(rows), canvas))
        rows, canvas_of_batch = np.concatenate(batches), np.concatenate(canvases)
        if self._shuffle:
            shuffled = rng.permutation(len(rows))
            rows, canvas_of_batch = rows[shuffled], canvas_of_batch[shuffled]
        filled = rows >= 0
        return _Epoch(
            canvas_of_batch.astype(np.int64),
            np.where(filled, self._indices[rows], -1),
            filled & flip[rows],
            None if chances is None else chances[rows],
        )


def kept_indices(source: Source, config: PipelineConfig) -> Int64[np.ndarray, "n"]:
    """Positions of the images that training uses.

    Source: open-mmlab/mmdetection, mmdet/datasets/coco.py (``filter_data``: no ground truth, or
    under 32 pixels). An image with only crowd regions counts as empty here.
    """
    if not config.drop_empty:
        return np.arange(len(source))
    table = source.table
    return np.flatnonzero((table.num_boxes > 0) & (table.sizes.min(axis=1) >= SMALLEST_SIDE))


@dataclasses.dataclass(frozen=True)
class Fits:
    """How n images of a source are placed on their canvases."""

    indices: Int64[np.ndarray, "n"]  # positions in the source
    canvas: Int64[np.ndarray, "n"]
    pixels: Int64[np.ndarray, "n"]  # of the resized image
    left_out: Int64[np.ndarray, "n"]  # boxes past max_boxes


def fit_all(source: Source, config: PipelineConfig, indices: np.ndarray) -> Fits:
    """Fits every image of a source from its stated size."""
    table, indices = source.table, np.asarray(indices, np.int64)
    sizes, which = np.unique(table.sizes[indices], axis=0, return_inverse=True)
    fitted = [
        fit(h, w, config.shorter, config.longer, config.canvases, config.resize)
        for h, w in sizes.tolist()
    ]
    canvas = np.array([chosen for chosen, _ in fitted], np.int64)[which]
    pixels = np.array([height * width for _, (height, width) in fitted], np.int64)[which]
    left_out = np.maximum(table.num_boxes[indices] - config.max_boxes, 0)
    return Fits(indices, canvas, pixels, left_out)


def train_fits(source: Source, config: PipelineConfig) -> Fits:
    """How the training images are placed on their canvases.

    Raises:
        UserError: there are no images, or no boxes, whatever ``drop_empty`` says.
    """
    require_boxes(source)
    kept = kept_indices(source, config)
    if not len(kept):
        raise UserError(
            f"{source.spec}: no image is left to train on; all {len(source)} are without a box "
            f"or under {SMALLEST_SIDE} pixels (drop_empty = {config.drop_empty})"
        )
    return fit_all(source, config, kept)


def plan_batches(fits: Fits, config: PipelineConfig, shuffle: bool) -> BatchPlan:
    """Assigns images to batches; only with ``shuffle`` are they mirrored or jittered."""
    return BatchPlan(
        fits.indices,
        fits.canvas,
        config.batch_size,
        seed=config.seed,
        flip=config.flip if shuffle else 0.0,
        shuffle=shuffle,
        jitter=shuffle and config.jitters,
    )


def padding_share(source: Source, config: PipelineConfig) -> float:
    """The share of the canvases' pixels that are padding in an epoch of training.

    The empty rows in the last batch of a canvas count as padding.

    Raises:
        UserError: see ``train_fits``.
    """
    fits = train_fits(source, config)
    counts = np.bincount(fits.canvas, minlength=len(config.canvases))
    rows = -(-counts // config.batch_size) * config.batch_size
    areas = np.array([height * width for height, width in config.canvases])
    return 1 - float(fits.pixels.sum()) / float(max(1, (rows * areas).sum()))


def steps_per_epoch(source: Source, config: PipelineConfig) -> int:
    """The number of batches per epoch of training; each canvas's last one may not be full.

    Raises:
        UserError: see ``train_fits``.
    """
    return plan_batches(train_fits(source, config), config, shuffle=True).steps_per_epoch


class Counter:
    """Sums counts over the batches between two log lines."""

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
        """Resets the counts."""
        self._batches = self._left = self._rows = 0
        self._canvas = self._covered = self._seconds = 0.0

    def add(self, planned: PlannedBatch, rows: int, seconds: float) -> None:
        """Adds a batch: as planned for all hosts, and the seconds that this host's rows took."""
        height, width = self._config.canvases[planned.canvas]
        real = planned.indices[planned.indices >= 0]
        self._batches += 1
        self._rows += rows
        self._canvas += float(len(planned.indices)) * height * width
        self._covered += float(self._pixels[real].sum())
        self._left += int(self._left_out[real].sum())
        self._seconds += seconds

    def take(self) -> dict[str, float]:
        """The counts since the last call.

        Returns:
            ``padding``: share of the canvas pixels that no image covers. ``boxes_past_max``:
            boxes per batch in excess of ``max_boxes``. ``loader_rate``: images per second that
            this host's readers can deliver, judging by the time they took.
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
