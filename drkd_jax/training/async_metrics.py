"""Steps under way: their values are read a few steps late, watched, and logged.

Nothing waits for a step that was just started, and everything read is read before anything is
written: so a state that is not finite never reaches the disk. A distillation that is switched off
by a wrong weight, an empty mask or a dead layer trains without a complaint and ends as a plain
student: so each term is watched by name.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from drkd_jax.distill.config import distill_config
from drkd_jax.fault_tolerance.checkpoint import Checkpoints
from drkd_jax.fault_tolerance.interrupt import NonFiniteError
from drkd_jax.fault_tolerance.processes import from_all
from drkd_jax.monitoring.collapse import UNTRAINED_SHARE, CollapseMonitor
from drkd_jax.monitoring.metrics import MetricAverager, Metrics
from drkd_jax.step.train_step import StepValues
from drkd_jax.training.setup import Run

AHEAD = 3  # steps that may be under way before the oldest one's values are read
_REPORTED = (
    "total",
    "gradient_norm",
    "parameter_norm",
    "learning_rate",
    "distill_factor",
    "finite",
)


class _Pending(NamedTuple):
    step: int  # steps done once it is through
    values: StepValues  # on the devices
    pictures: np.ndarray  # positions in the source, [B]; -1 for a filling picture


def _largest_untrained_share(config: Mapping[str, Any]) -> float:
    """1 where the optimiser trains the teacher's graph units too, or something else did."""
    if config.get("distill") is None:
        return UNTRAINED_SHARE
    pixel = distill_config(config["distill"]).pixel_relation
    return UNTRAINED_SHARE if pixel is None or pixel.teacher_modules == "frozen" else 1.0


class AsyncMetrics:
    """The steps under way of one session.

    Args:
        run: what is trained.
        metrics: where numbers and warnings go.
        checkpoints: to say which one is good where a step is not.

    Attributes:
        averager: of the log window that the values go into.
    """

    def __init__(self, run: Run, metrics: Metrics, checkpoints: Checkpoints):
        self.averager = MetricAverager(run.weights, run.train.batch_size)
        self._run, self._metrics, self._checkpoints = run, metrics, checkpoints
        self._inactive: InactiveLossMonitor | None = None
        # A session's start is what it compares with.
        self._monitor = CollapseMonitor(untrained=_largest_untrained_share(run.config))
        self._pending: deque[_Pending] = deque()

    def add(self, step: int, values: StepValues, pictures: np.ndarray) -> None:
        """Takes a step that was just started; reads the one of `AHEAD` steps before.

        Raises:
            NonFiniteError: with the step, the terms and the picture ids.
        """
        self._pending.append(_Pending(step, values, pictures))
        if len(self._pending) > AHEAD:
            self._read(self._pending.popleft())

    def read_all(self) -> None:
        """Waits for every step under way.

        Raises:
            NonFiniteError: with the step, the terms and the picture ids.
        """
        while self._pending:
            self._read(self._pending.popleft())

    def log(self, step: int) -> None:
        """Writes the log line of all steps since the last one.

        Raises:
            NonFiniteError: with the step, the terms and the picture ids.
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
                run.weights, own, run.train.silence_steps, run.train.silence_share
            )
            for warning in self._inactive.at_start():
                self._metrics.warn(pending.step, warning)
        for warning in self._inactive.observe(values):
            self._metrics.warn(pending.step, warning)

    def _stop_non_finite(self, pending: _Pending, values: Mapping[str, float]) -> None:
        wrong = [name for name, value in values.items() if not math.isfinite(value)]
        # The terms first of all; what follows from them is named where no term is to blame.
        bad = [name for name in wrong if name not in _REPORTED and "/" not in name] or wrong
        source = self._run.train_source
        pictures = from_all(pending.pictures)
        ids = [source.meta(int(index)).image_id for index in pictures if index >= 0]
        latest = self._checkpoints.latest_step()
        kept = f"the checkpoint of step {latest} is good" if latest else "no checkpoint was written"
        message = (
            f"not finite at step {pending.step}: {', '.join(bad)}; pictures {ids} of "
            f"{source.spec}; {kept}. A lower learning rate, a longer warm-up or "
            "train.clip_norm may help"
        )
        self._metrics.warn(pending.step, message)
        raise NonFiniteError(message)


class InactiveLossMonitor:
    """Counts, for each term, the steps in a row in which it was silent.

    Args:
        weights: of the distillation terms, as configured: a schedule that takes them down on
            purpose is no silence. Other terms are watched for 0 only.
        detection: names of the detector's own terms.
        steps: silent steps in a row before a warning.
        share: a weighted distillation term under this share of the total is silent.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        detection: tuple[str, ...] = (),
        steps: int = 200,
        share: float = 1e-3,
    ):
        self._weights = dict(weights)
        self._detection = detection
        self._steps = steps
        self._share = share
        self._counts: dict[tuple[str, str], int] = {}

    def at_start(self) -> list[str]:
        """What can be said before the first step: terms whose weight is 0."""
        return [
            f"distillation term {name} has weight 0: it is computed and changes nothing"
            for name, weight in self._weights.items()
            if weight == 0
        ]

    def observe(self, values: Mapping[str, float]) -> list[str]:
        """Takes in one step.

        Args:
            values: "total" and every term, distillation terms unweighted.

        Returns:
            warnings, one sentence each: a term is named at the step that makes it `steps` silent
            steps in a row, and again only after it has spoken in between.
        """
        warnings = []
        total = values["total"]
        for name, weight in self._weights.items():
            value, fault = values[name], None
            if not math.isfinite(value):
                fault = "not finite"
            elif value == 0:
                fault = "0"
            elif not abs(weight * value) >= self._share * abs(total):
                fault = f"under {self._share:.2%} of the total loss"
            warnings += self._count(f"distillation term {name}", fault)
        for name in self._detection:
            warnings += self._count(f"loss term {name}", "0" if values[name] == 0 else None)
        if "gradient_norm" in values:
            norm = values["gradient_norm"]
            warnings += self._count("the gradient's norm", "0" if norm == 0 else None)
        return warnings

    def _count(self, what: str, fault: str | None) -> list[str]:
        for key in [key for key in self._counts if key[0] == what and key[1] != fault]:
            del self._counts[key]
        if fault is None:
            return []
        count = self._counts[what, fault] = self._counts.get((what, fault), 0) + 1
        if count != self._steps:
            return []
        return [f"{what} has been {fault} for {count} steps"]
