"""Which pictures make up batch number i: the whole shuffle as a pure function of (seed, i).

A batch is of one canvas. In every epoch the pictures are permuted, dealt to their canvases in that
order, cut into batches, and the batches are shuffled. The last batch of a canvas may not be full:
its missing rows are -1.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

from drkd_jax.data.jitter import NUM_CHANCES


class PlannedBatch(NamedTuple):
    """What batch number i is made of; n rows, -1 where no picture is left."""

    canvas: int
    indices: Int64[np.ndarray, "n"]
    flip: Bool[np.ndarray, "n"]
    chances: Float64[np.ndarray, "n 6"] | None = None  # what `jitter` goes by, where it does


class _Epoch(NamedTuple):
    canvas: Int64[np.ndarray, "batches"]
    indices: Int64[np.ndarray, "batches n"]
    flip: Bool[np.ndarray, "batches n"]
    chances: Float64[np.ndarray, "batches n 6"] | None


class BatchPlan:
    """Batches of one canvas each, for every epoch, by number.

    Args:
        indices: positions in the source of the pictures that take part.
        canvas_of: the canvas of each of them.
        batch_size: rows of a batch over all hosts.
        seed: of permutation, batch order and flips.
        flip: probability that a picture is mirrored.
        shuffle: False keeps the source's order, canvas after canvas.
        jitter: whether every picture gets random numbers for its scale and colours.
    """

    def __init__(
        self,
        indices: Int64[np.ndarray, "pictures"],
        canvas_of: Int64[np.ndarray, "pictures"],
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
        if epoch is None:  # two threads may both build it: the same arrays, no harm
            epoch = self._epochs[number_of_epoch] = self._build(number_of_epoch)
            while len(self._epochs) > 2:
                try:
                    self._epochs.popitem(last=False)
                except KeyError:
                    break
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
            # By picture, not by row: the choice outlives another batch size or number of hosts.
            flip = rng.random(len(order)) < self._flip
        chances = None
        if self._jitter:
            # Numbers of their own, so that order and flips are those of a run without them.
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
