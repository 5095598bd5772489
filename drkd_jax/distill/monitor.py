"""Watches whether the two sides agree because the student learns, or because both go empty.

Where the teacher's relation modules are trained by the same loss, the easiest way down is an
embedding that says nothing. The loss cannot show it; these numbers, logged a level, can:

    teacher_norm         norm of the teacher's embedding over that of its input
    teacher_variance     its variance over the pixels over that of its input
    teacher_entropy      of the rows of the relation matrix over log n; 1 is uniform

A norm, a variance or an entropy that falls far below where it started is a collapse, and so is an
entropy that comes so near to 1 that the rows say nothing any more.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

_MEANING = {
    "teacher_norm": "the norm of the teacher's embedding over its input's",
    "teacher_variance": "the variance of the teacher's embedding over its input's",
    "teacher_entropy": "the entropy of the teacher's relation rows over log n",
    "teacher_information": "what the teacher's relation rows say (1 - entropy over log n)",
}


@dataclasses.dataclass
class _Watch:
    seen: list[float] = dataclasses.field(default_factory=list)
    low: int = 0
    warned: bool = False


class CollapseMonitor:
    """Compares each watched diagnostic with its own start.

    Args:
        fraction: of the start, below which a number counts as fallen.
        information_fraction: the same for 1 - entropy, which moves more from batch to batch.
        warmup: observations that make the start (their mean).
        patience: fallen observations in a row before a warning.
    """

    def __init__(
        self,
        fraction: float = 0.5,
        information_fraction: float = 0.1,
        warmup: int = 5,
        patience: int = 5,
    ):
        self._fractions = dict.fromkeys(_MEANING, fraction)
        self._fractions["teacher_information"] = information_fraction
        self._warmup = warmup
        self._patience = patience
        self._watched: dict[str, _Watch] = {}

    def observe(self, values: Mapping[str, float]) -> list[str]:
        """Takes in the diagnostics of one step.

        Args:
            values: `DistillOutput.diagnostics` as numbers; names may carry a prefix, and names
                that are not watched are passed over. A relation entropy of exactly 0 means that no
                picture of the batch had two boxes, and is passed over.

        Returns:
            Warnings, one sentence each. A number is named once, and again only after it has risen
            above its limit in between.
        """
        found = {}
        for name, value in values.items():
            what = name.rsplit("/", 1)[-1]
            if what not in _MEANING or not math.isfinite(value):
                continue
            if what == "teacher_entropy":
                if value == 0:
                    continue
                found[name.replace("teacher_entropy", "teacher_information")] = 1 - float(value)
            found[name] = float(value)
        return [warning for name, value in found.items() for warning in self._one(name, value)]

    def _one(self, name: str, value: float) -> list[str]:
        watch = self._watched.setdefault(name, _Watch())
        if len(watch.seen) < self._warmup:
            watch.seen.append(value)
            return []
        what = name.rsplit("/", 1)[-1]
        start = sum(watch.seen) / len(watch.seen)
        if not value < self._fractions[what] * start:
            watch.low, watch.warned = 0, False
            return []
        watch.low += 1
        if watch.low < self._patience or watch.warned:
            return []
        watch.warned = True
        return [
            f"collapse: {name} fell from {start:.3g} to {value:.3g}: {_MEANING[what]} is going, so "
            "a falling distillation loss means nothing; use teacher_modules 'frozen' or 'average'"
        ]
