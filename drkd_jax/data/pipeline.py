"""From a source to batches: planned by number, read by Grain's threads or processes.

Letters: B pictures of a batch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import grain
import numpy as np
from absl import flags

from drkd_jax.data.config import PipelineConfig
from drkd_jax.data.plan import BatchPlan
from drkd_jax.data.reader import BatchReader
from drkd_jax.data.records import Source
from drkd_jax.data.transforms import fit
from drkd_jax.errors import UserError
from drkd_jax.types import Batch

__all__ = [
    "BatchReader",
    "EvalBatches",
    "PipelineConfig",
    "TrainIterator",
    "boxes_left_out",
    "eval_batches",
    "kept_indices",
    "steps_per_epoch",
    "train_loader",
]

_FOREVER = 2**48  # batches; a training run ends by its own count of steps
_SMALLEST_SIDE = 32  # pixels; mmdetection leaves smaller training pictures out

_log = logging.getLogger(__name__)


def kept_indices(source: Source, config: PipelineConfig) -> np.ndarray:
    """Positions of the pictures that training sees.

    Source: open-mmlab/mmdetection, mmdet/datasets/coco.py (``filter_data``: no ground truth, or
    under 32 pixels). A picture that has crowd regions only counts as empty here.
    """
    if not config.drop_empty:
        return np.arange(len(source))
    metas = (source.meta(i) for i in range(len(source)))
    return np.array(
        [
            i
            for i, meta in enumerate(metas)
            if meta.num_boxes > 0 and min(meta.height, meta.width) >= _SMALLEST_SIDE
        ],
        np.int64,
    )


def boxes_left_out(source: Source, config: PipelineConfig) -> int:
    """How many training boxes of one epoch find no row in ``max_boxes``."""
    counts = [source.meta(int(i)).num_boxes for i in kept_indices(source, config)]
    return sum(max(0, count - config.max_boxes) for count in counts)


def steps_per_epoch(source: Source, config: PipelineConfig) -> int:
    """Batches of one epoch of training; each canvas's last one may not be full."""
    return _train_plan(source, config).steps_per_epoch


def train_loader(
    source: Source, config: PipelineConfig, *, process_index: int = 0, process_count: int = 1
) -> TrainIterator:
    """Endless training batches of this host, epoch after epoch.

    Element i is a pure function of (seed, i), whatever the threads, the workers and the position
    the iterator was set to. Every host gets its rows of the same global batch.

    Args:
        source: where pictures come from.
        config: sizes, seed and reading; ``batch_size`` is global.
        process_index: this host.
        process_count: all hosts.

    Returns:
        A Grain iterator of ``Batch`` (NumPy arrays, ``batch_size / process_count`` rows) with
        ``get_state()`` and ``set_state()``.

    Raises:
        UserError: no picture is left, or the batch does not divide over the hosts. While
            iterating: a picture cannot be read.
    """
    plan = _train_plan(source, config)
    left_out = boxes_left_out(source, config)
    if left_out:
        _log.warning(
            "%s: %d boxes an epoch are left out of training, being past max_boxes = %d a picture",
            source.spec,
            left_out,
            config.max_boxes,
        )
    reader = BatchReader(source, config, plan, _host_rows(config, process_index, process_count))
    return TrainIterator(reader, config)


class TrainIterator(grain.DatasetIterator[Batch]):
    """Endless batches. The state is the number of batches handed out and nothing else.

    So a run may go on with other threads, workers or hosts than it was stopped with.
    """

    def __init__(self, reader: BatchReader, config: PipelineConfig):
        super().__init__()
        self._reader, self._config = reader, config
        self._next = 0
        self._inner: grain.DatasetIterator[Batch] | None = None

    def __next__(self) -> Batch:
        self._assert_not_closed()
        if self._inner is None:
            self._inner = iter(_dataset(self._reader, self._next, _FOREVER, self._config))
        batch = next(self._inner)
        self._next += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """The number of the next batch, counted from the start of training."""
        return {"next_batch": self._next}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes on with batch ``state["next_batch"]``, forwards or back."""
        self._drop()
        self._next = int(state["next_batch"])

    def close(self) -> None:
        """Stops threads and workers; the iterator cannot be advanced any more."""
        self._drop()
        super().close()

    def _drop(self) -> None:
        if self._inner is not None:
            self._inner.close()
            self._inner = None


class EvalBatches:
    """Each picture of a source once, in batches; can be walked again and again.

    Pictures are neither shuffled, mirrored nor left out. Every host sees the same number of
    batches with the same canvases; the missing pictures of a canvas's last batch are not valid.
    """

    def __init__(
        self,
        source: Source,
        config: PipelineConfig,
        process_index: int,
        process_count: int,
        max_pictures: int,
    ):
        self._config = config
        count = min(len(source), max_pictures) if max_pictures else len(source)
        plan = _plan(source, config, np.arange(count), shuffle=False)
        self.num_pictures = count
        self.image_ids = tuple(source.meta(i).image_id for i in range(count))
        self._length = plan.steps_per_epoch
        rows = _host_rows(config, process_index, process_count)
        self._reader = BatchReader(source, config, plan, rows)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        return iter(_dataset(self._reader, 0, self._length, self._config))


def eval_batches(
    source: Source,
    config: PipelineConfig,
    *,
    process_index: int = 0,
    process_count: int = 1,
    max_pictures: int = 0,
) -> EvalBatches:
    """Batches for evaluation: each picture exactly once over all hosts.

    Args:
        source: where pictures come from.
        config: sizes and reading; ``batch_size`` is global.
        process_index: this host.
        process_count: all hosts.
        max_pictures: only the first so many pictures; 0 for all. ``image_ids`` of the result
            tells ``evaluation.coco_numbers`` which ones were seen.

    Raises:
        UserError: the batch does not divide over the hosts. While iterating: a picture cannot
            be read.
    """
    return EvalBatches(source, config, process_index, process_count, max_pictures)


def _train_plan(source: Source, config: PipelineConfig) -> BatchPlan:
    kept = kept_indices(source, config)
    if not len(kept):
        raise UserError(
            f"{source.spec}: no picture is left to train on; all {len(source)} are without a box "
            f"or under {_SMALLEST_SIDE} pixels (drop_empty = {config.drop_empty})"
        )
    return _plan(source, config, kept, shuffle=True)


def _plan(source: Source, config: PipelineConfig, indices: np.ndarray, shuffle: bool) -> BatchPlan:
    canvas_of = np.zeros(len(indices), np.int64)
    known: dict[tuple[int, int], int] = {}
    for at, index in enumerate(indices):
        size = source.meta(int(index))[1:3]
        if size not in known:
            known[size], _ = fit(*size, config.shorter, config.longer, config.canvases)
        canvas_of[at] = known[size]
    return BatchPlan(
        indices.astype(np.int64),
        canvas_of,
        config.batch_size,
        seed=config.seed,
        flip=config.flip if shuffle else 0.0,
        shuffle=shuffle,
    )


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


def _dataset(
    reader: BatchReader, start: int, stop: int, config: PipelineConfig
) -> grain.IterDataset:
    """Batches start..stop-1, read ahead by threads and, where asked for, worker processes."""
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
        )
    )
