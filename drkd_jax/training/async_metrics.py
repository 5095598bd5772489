"""Reads the values of steps a few steps late, checks them, and logs them.

The loop never waits for the step that it has just started. All pending values are read before
anything is written, so a non-finite state never reaches the disk.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from drkd_jax.distill.config import DistillConfig
from drkd_jax.fault_tolerance.checkpoint import Checkpoints
from drkd_jax.fault_tolerance.interrupt import NonFiniteError
from drkd_jax.fault_tolerance.processes import from_all
from drkd_jax.monitoring.collapse import UNTRAINED_SHARE, CollapseMonitor
from drkd_jax.monitoring.inactive_loss import InactiveLossMonitor
from drkd_jax.monitoring.metrics import MetricAverager, Metrics
from drkd_jax.step.train_step import StepValues
from drkd_jax.training.setup import Run

AHEAD = 3  # steps that may be running before the values of the oldest one are read
_REPORTED = (
    "total",
    "gradient_norm",
    "parameter_norm",
    "learning_rate",
    "distill_factor",
    "finite",
)


class _Pending(NamedTuple):
    step: int  # number of steps done after it
    values: StepValues  # on the devices
    images: np.ndarray  # positions in the source, [B]; -1 for a padding image


def largest_untrained_share(config: DistillConfig | None) -> float:
    """The `untrained` limit of `CollapseMonitor`: 1 if the teacher's graph units are trained."""
    pixel = config.pixel_relation if config else None
    return UNTRAINED_SHARE if pixel is None or pixel.teacher_modules == "frozen" else 1.0


class AsyncMetrics:
    """The running steps of one session.

    Args:
        run: what is trained.
        metrics: where numbers and warnings go.
        checkpoints: to name the last good one if a step is not finite.
        silent: `silent` of the session that the run continues.

    Attributes:
        averager: averages the values over the current log window.
    """

    def __init__(
        self,
        run: Run,
        metrics: Metrics,
        checkpoints: Checkpoints,
        silent: Sequence[Sequence[Any]] = (),
    ):
        self.averager = MetricAverager(run.weights, run.train.batch_size)
        self._run, self._metrics, self._checkpoints = run, metrics, checkpoints
        self._inactive: InactiveLossMonitor | None = None
        self._counted = silent
        self._monitor = CollapseMonitor(untrained=largest_untrained_share(run.distillation))
        # It compares with the start of the run, which may have been in an earlier session; what it
        # finds in the earlier lines was already reported then.
        for line in metrics.earlier:
            if line["kind"] == "train":
                self._monitor.observe({k: v for k, v in line.items() if isinstance(v, float)})
        self._pending: deque[_Pending] = deque()

    @property
    def silent(self) -> list[list[Any]]:
        """JSON values for a checkpoint: which terms are silent, and for how many steps."""
        return self._inactive.counts if self._inactive else list(map(list, self._counted))

    def add(self, step: int, values: StepValues, images: np.ndarray) -> None:
        """Adds a step that was just started; reads the one started `AHEAD` steps before.

        Raises:
            NonFiniteError: with the step, the terms and the image ids.
        """
        self._pending.append(_Pending(step, values, images))
        if len(self._pending) > AHEAD:
            self._read(self._pending.popleft())

    def read_all(self) -> None:
        """Waits for every running step and reads its values.

        Raises:
            NonFiniteError: with the step, the terms and the image ids.
        """
        while self._pending:
            self._read(self._pending.popleft())

    def log(self, step: int) -> None:
        """Writes the log line of all steps since the last one.

        Raises:
            NonFiniteError: with the step, the terms and the image ids.
        """
        self.read_all()
        values, shown = self.averager.close(self._run.steps - step)
        for warning in self._monitor.observe(values):
            self._metrics.warn(step, warning)
        self._metrics.train(step, values, shown)

    def _read(self, pending: _Pending) -> None:
        values = pending.values.to_dict()
        if not values["finite"]:
            self._stop_non_finite(pending, values)
        self.averager.values(values)
        if self._inactive is None:
            run = self._run
            own = tuple(
                name
                for name in values
                if name not in (*_REPORTED, *run.weights) and not name.startswith("diag/")
            )
            self._inactive = InactiveLossMonitor(
                run.weights, own, run.train.silence_steps, run.train.silence_share, self._counted
            )
        for warning in self._inactive.observe(values):
            self._metrics.warn(pending.step, warning)

    def _stop_non_finite(self, pending: _Pending, values: Mapping[str, float]) -> None:
        wrong = [name for name, value in values.items() if not math.isfinite(value)]
        # Name the terms; values derived from them are named only if every term is finite.
        bad = [name for name in wrong if name not in _REPORTED and "/" not in name] or wrong
        source = self._run.train_source
        images = from_all(pending.images)
        ids = [source.meta(int(index)).image_id for index in images if index >= 0]
        latest = self._checkpoints.latest_step()
        kept = f"the checkpoint of step {latest} is good" if latest else "no checkpoint was written"
        message = (
            f"not finite at step {pending.step}: {', '.join(bad)}; images {ids} of "
            f"{source.spec}; {kept}. A lower learning rate, a longer warm-up or "
            "train.clip_norm may help"
        )
        self._metrics.warn(pending.step, message)
        raise NonFiniteError(message)
