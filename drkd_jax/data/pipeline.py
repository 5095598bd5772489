"""Turns a source into batches: planned by number, read by Grain's threads or processes.

Letters: B images of a batch, H W canvas pixels, G padded ground truths.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grain
import numpy as np
from absl import flags

from drkd_jax.data.batch import empty_batch
from drkd_jax.data.config import PipelineConfig
from drkd_jax.data.plan import BatchPlan, Counter, fit_all, plan_batches, train_fits
from drkd_jax.data.skipped import SkipList
from drkd_jax.data.sources.records import Source
from drkd_jax.data.transforms import (
    Chances,
    Window,
    crop_boxes,
    cut_out,
    fit,
    recolour,
    scale_boxes,
    window,
)
from drkd_jax.errors import UserError
from drkd_jax.types import Batch

_FOREVER = 2**48  # batches; a training run ends after its own number of steps


class BatchReader:
    """Maps a batch number to a ``Batch``: a pure function, picklable for worker processes.

    Args:
        source: the source of the images.
        config: sizes, and what to do with an image that cannot be read.
        plan: which images make up a batch.
        rows: this host's rows of the batch.
    """

    def __init__(self, source: Source, config: PipelineConfig, plan: BatchPlan, rows: slice):
        self.source, self.config, self.plan, self.rows = source, config, plan, rows

    def __call__(self, number: int) -> tuple[Batch, float]:
        """The result of ``read``, and the seconds that it took."""
        before = time.perf_counter()
        batch = self.read(int(number))
        return batch, time.perf_counter() - before

    def read(self, number: int) -> Batch:
        """Reads, resizes and pads this host's images of a batch.

        Raises:
            UserError: an image cannot be read. With ``on_error = "skip"`` its row becomes a
                padding image instead.
        """
        config, planned = self.config, self.plan.batch(number)
        indices, flip = planned.indices[self.rows], planned.flip[self.rows]
        chances = None if planned.chances is None else planned.chances[self.rows]
        batch = empty_batch(config, planned.canvas, len(indices))._replace(
            flip=flip.copy(), image_valid=indices >= 0, index=indices.astype(np.int32)
        )
        for row in np.flatnonzero(batch.image_valid):
            try:
                own = None if chances is None else chances[row]
                self._fill(batch, int(row), int(indices[row]), own)
            except UserError:
                if config.on_error == "stop":
                    raise
                # The caller sees what is missing and records it (`SkipList`).
                batch.image_valid[row], batch.index[row], batch.flip[row] = False, -1, False
        return batch

    def missing(self, number: int, batch: Batch) -> np.ndarray:
        """Positions in the source of the images that are missing from batch ``number``."""
        indices = self.plan.batch(number).indices[self.rows]
        return indices[(indices >= 0) & ~np.asarray(batch.image_valid)]

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


def train_loader(
    source: Source,
    config: PipelineConfig,
    *,
    process_index: int = 0,
    process_count: int = 1,
    skipped: Path | None = None,
) -> TrainIterator:
    """Endless training batches of this host, epoch after epoch.

    Element i is a pure function of (seed, i), independent of threads, workers and the position
    that the iterator was set to. Every host gets its rows of the same global batch.

    Args:
        source: the source of the images.
        config: sizes, seed and reading; ``batch_size`` is global.
        process_index: the index of this host.
        process_count: the number of hosts.
        skipped: file for the list of skipped images; only one host should have it.

    Returns:
        A Grain iterator of ``Batch`` (NumPy arrays, ``batch_size / process_count`` rows) with
        ``get_state()`` and ``set_state()``.

    Raises:
        UserError: no image is left, or the hosts cannot share the batch evenly. While iterating:
            an image cannot be read, or, if images are skipped, more than 1 % cannot.
    """
    fits = train_fits(source, config)
    plan = plan_batches(fits, config, shuffle=True)
    reader = BatchReader(source, config, plan, _host_rows(config, process_index, process_count))
    skips = _skip_list(reader, len(fits.indices), skipped, process_index)
    return TrainIterator(reader, Counter(fits, config), skips)


class _Skipping:
    """Batches whose reader may skip images; ``_skips`` is None if it stops instead."""

    _skips: SkipList | None

    def share_skipped(self, allgather: Callable[[np.ndarray], np.ndarray]) -> None:
        """Tells every host what all of them skipped; see ``SkipList.share``.

        Raises:
            UserError: more than 1 % of the images were skipped; raised on every host.
        """
        if self._skips is not None:
            self._skips.share(allgather)

    @property
    def num_skipped(self) -> int:
        """The number of images skipped so far."""
        return len(self._skips.reasons) if self._skips is not None else 0


class TrainIterator(_Skipping, grain.DatasetIterator[Batch]):
    """Endless batches. The state is only the number of batches returned.

    So a run may continue with other threads, workers or hosts.
    """

    def __init__(self, reader: BatchReader, counter: Counter, skips: SkipList | None):
        super().__init__()
        self._reader, self._counter, self._skips = reader, counter, skips
        self._next = 0
        self._inner: grain.DatasetIterator[tuple[Batch, float]] | None = None

    def __next__(self) -> Batch:
        self._assert_not_closed()
        if self._inner is None:
            self._inner = iter(_dataset(self._reader, self._next, _FOREVER))
        batch, seconds = next(self._inner)
        self._counter.add(self._reader.plan.batch(self._next), len(batch.index), seconds)
        if self._skips is not None:
            self._skips.add(self._reader.missing(self._next, batch))
        self._next += 1
        return batch

    def counts(self) -> dict[str, float]:
        """``padding``, ``boxes_past_max`` and ``loader_rate`` of the batches since the last call.

        See ``Counter.take``. If images are skipped, also ``skipped``, their number so far.
        """
        counts = self._counter.take()
        return counts | ({} if self._skips is None else {"skipped": float(self.num_skipped)})

    def get_state(self) -> dict[str, int]:
        """The number of the next batch, counted from the start of training."""
        return {"next_batch": self._next}

    def set_state(self, state: dict[str, int]) -> None:
        """Continues with batch ``state["next_batch"]``, forwards or back."""
        self._drop()
        self._counter.reset()
        self._next = int(state["next_batch"])

    def close(self) -> None:
        """Stops threads and workers; the iterator cannot be used afterwards."""
        self._drop()
        super().close()

    def _drop(self) -> None:
        if self._inner is not None:
            self._inner.close()
            self._inner = None


class EvalBatches(_Skipping):
    """Each image of a source once, in batches; can be iterated repeatedly.

    Images are neither shuffled, mirrored nor left out. Every host sees the same number of
    batches with the same canvases; a canvas's last batch is filled up with invalid images.

    A skipped image is invalid too, so nothing is found on it. It stays among ``image_ids``: its
    boxes count as missed, so skipping images cannot raise a score.
    """

    def __init__(self, reader: BatchReader, num_images: int, skips: SkipList | None):
        self.num_images = num_images
        self.image_ids = tuple(reader.source.meta(i).image_id for i in range(num_images))
        self._reader, self._skips = reader, skips

    def __len__(self) -> int:
        return self._reader.plan.steps_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(_dataset(self._reader, 0, len(self)))
        try:
            for number, (batch, _) in enumerate(batches):
                if self._skips is not None:
                    self._skips.add(self._reader.missing(number, batch))
                yield batch
        finally:
            batches.close()
            if self._reader.config.num_workers:
                # It has a reference cycle, and shared memory that should be freed now.
                del batches
                gc.collect()


def eval_batches(
    source: Source,
    config: PipelineConfig,
    *,
    process_index: int = 0,
    process_count: int = 1,
    max_images: int = 0,
    skipped: Path | None = None,
) -> EvalBatches:
    """Batches for evaluation: each image exactly once over all hosts.

    Args:
        source: the source of the images.
        config: sizes and reading; ``batch_size`` is global.
        process_index: the index of this host.
        process_count: the number of hosts.
        max_images: use only this many first images; 0 for all. ``image_ids`` of the result
            tells ``evaluation.coco_numbers`` which ones were used.
        skipped: file for the list of skipped images; only one host should have it.

    Raises:
        UserError: the hosts cannot share the batch evenly. While iterating: an image cannot be
            read, or, if images are skipped, more than 1 % cannot.
    """
    count = min(len(source), max_images) if max_images else len(source)
    plan = plan_batches(fit_all(source, config, np.arange(count)), config, shuffle=False)
    reader = BatchReader(source, config, plan, _host_rows(config, process_index, process_count))
    return EvalBatches(reader, count, _skip_list(reader, count, skipped, process_index))


def _skip_list(
    reader: BatchReader, total: int, path: Path | None, process_index: int
) -> SkipList | None:
    if reader.config.on_error != "skip":
        return None
    return SkipList(reader.source, total, path, silent=process_index > 0)


def _host_rows(config: PipelineConfig, process_index: int, process_count: int) -> slice:
    rows, rest = divmod(config.batch_size, process_count)
    if rest or not rows:
        below, above = rows * process_count, (rows + 1) * process_count
        nearest = f"{below} or {above}" if below else f"{above}"
        raise UserError(
            f"batch_size = {config.batch_size} does not divide over {process_count} hosts: "
            f"take {nearest}"
        )
    return slice(process_index * rows, (process_index + 1) * rows)


def _dataset(reader: BatchReader, start: int, stop: int) -> grain.IterDataset:
    """Batches start..stop-1 with their reading times, read ahead by threads or workers."""
    config = reader.config
    options = grain.ReadOptions(
        num_threads=config.num_threads, prefetch_buffer_size=config.prefetch
    )
    batches = grain.MapDataset.range(start, stop).map(reader).to_iter_dataset(options)
    if not config.num_workers:
        return batches
    if not flags.FLAGS.is_parsed():  # Grain's workers read absl flags
        flags.FLAGS.mark_as_parsed()
    return batches.mp_prefetch(
        grain.MultiprocessingOptions(
            num_workers=config.num_workers, per_worker_buffer_size=config.prefetch
        ),
        _begin_worker,
    )


def _begin_worker(_: int, __: int) -> None:
    """Makes a worker live exactly as long as the run.

    Ctrl-C reaches all processes of a terminal, and a queue's signal all those of a job. The run
    then ends with a checkpoint and needs batches until it has written it.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_run, daemon=True).start()


def _end_with_run() -> None:
    run = multiprocessing.parent_process()
    if run is not None:
        run.join()  # a killed run cannot notify its workers
        os._exit(0)
