"""One batch from its number: read, resize, pad.

Letters: B pictures of a batch, H W canvas pixels, G padded ground truths.
"""

from __future__ import annotations

import time

import numpy as np

from drkd_jax.data.config import PipelineConfig
from drkd_jax.data.jitter import Chances, Window, crop_boxes, cut_out, recolour, window
from drkd_jax.data.plan import BatchPlan
from drkd_jax.data.records import Source
from drkd_jax.data.transforms import fit, scale_boxes
from drkd_jax.errors import UserError
from drkd_jax.types import Batch


class BatchReader:
    """Batch number to ``Batch``: a pure function, picklable for worker processes.

    Args:
        source: where pictures come from.
        config: sizes, and what happens to a picture that cannot be read.
        plan: which pictures make up a batch.
        rows: this host's rows of it.
    """

    def __init__(self, source: Source, config: PipelineConfig, plan: BatchPlan, rows: slice):
        self.source, self.config, self.plan, self.rows = source, config, plan, rows

    def __call__(self, number: int) -> Batch:
        """Reads, resizes and pads this host's pictures of a batch.

        Raises:
            UserError: a picture cannot be read. With ``on_error = "skip"`` its row becomes a
                filling picture instead.
        """
        config, planned = self.config, self.plan.batch(int(number))
        height, width = config.canvases[planned.canvas]
        indices, flip = planned.indices[self.rows], planned.flip[self.rows]
        chances = None if planned.chances is None else planned.chances[self.rows]
        B, G = len(indices), config.max_boxes
        batch = Batch(
            images=np.zeros((B, height, width, 3), pixel_type(config)),
            sizes=np.zeros((B, 2), np.int32),
            flip=flip.copy(),
            boxes=np.zeros((B, G, 4), np.float32),
            labels=np.zeros((B, G), np.int32),
            valid=np.zeros((B, G), bool),
            picture_valid=indices >= 0,
            index=indices.astype(np.int32),
            scale=np.ones((B, 2), np.float32),
        )
        for row in np.flatnonzero(batch.picture_valid):
            try:
                own = None if chances is None else chances[row]
                self._fill(batch, int(row), int(indices[row]), own)
            except UserError:
                if config.on_error == "stop":
                    raise
                # The reader's owner sees what is missing, and keeps the list (`SkipList`).
                batch.picture_valid[row], batch.index[row], batch.flip[row] = False, -1, False
        return batch

    def missing(self, number: int, batch: Batch) -> np.ndarray:
        """Positions in the source of the pictures that batch ``number`` should have and has not."""
        indices = self.plan.batch(number).indices[self.rows]
        return indices[(indices >= 0) & ~np.asarray(batch.picture_valid)]

    def _fill(self, batch: Batch, row: int, index: int, chances: Chances | None) -> None:
        config, record = self.config, self.source.record(index)
        height, width = record.image.shape[:2]
        _, size = fit(height, width, config.shorter, config.longer, config.canvases, config.resize)
        canvas = np.asarray(batch.images)[row]
        seen = Window(size, (0, 0), size)
        if chances is not None:
            seen = window(size, canvas.shape[:2], config.scale_jitter, chances)
        image = cut_out(record.image, seen, canvas.dtype)
        if chances is not None and config.colour_jitter:
            image = recolour(image, config.colour_jitter, chances)
        canvas[: seen.size[0], : seen.size[1]] = image
        scale = np.array([seen.full[1] / width, seen.full[0] / height], np.float32)
        batch.sizes[row], batch.scale[row] = seen.size, scale
        trained = np.flatnonzero(~record.crowd)
        boxes, kept = crop_boxes(scale_boxes(record.boxes[trained], scale, seen.full), seen)
        trained, boxes = trained[kept][: config.max_boxes], boxes[kept][: config.max_boxes]
        n = len(trained)
        batch.boxes[row, :n] = boxes
        batch.labels[row, :n] = record.labels[trained]
        batch.valid[row, :n] = True


def pixel_type(config: PipelineConfig) -> type[np.generic]:
    """What a batch holds for each colour of a pixel: bytes, or floats of 0 to 255."""
    return np.float32 if config.resize == "torchvision" else np.uint8


class TimedReader:
    """A reader that also tells how many seconds it took: ``(batch, seconds)``."""

    def __init__(self, reader: BatchReader):
        self._reader = reader

    def __call__(self, number: int) -> tuple[Batch, float]:
        """Reads batch ``number``."""
        before = time.perf_counter()
        batch = self._reader(number)
        return batch, time.perf_counter() - before
