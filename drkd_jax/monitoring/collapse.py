"""Detects a collapse: both sides agree because their embeddings lose all information.

If the teacher's relation modules are trained by the same loss, the easiest way to reduce the loss
is an empty embedding. The loss does not reveal this; these numbers, logged per level, do:

    teacher_norm         norm of the teacher's embedding, divided by that of its input
    teacher_variance     its variance over the pixels, divided by that of its input
    teacher_entropy      entropy of the relation matrix's rows, divided by log n; 1 is uniform

A norm, a variance or an entropy far below its initial value is a collapse, and so is an entropy so
close to 1 that the rows carry no information.

A target that does not collapse can still be uninformative, so the initial values are judged too. A
warning names, once, rows that are nearly uniform or select a single box, and targets that are
mostly a random function of the image.
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


FULL_ROWS = (0.1, 0.95)  # range of row entropy / log n in which a relation is informative
UNTRAINED_SHARE = 0.5  # largest share of a target's variance from an untrained branch
LEAST_SHARE = 1e-3  # share of the total loss under which a weighted term does not teach


def untrained_share(teacher_variance: float) -> float:
    """The share of the target's variance that the branch adds to that of the map.

    Args:
        teacher_variance: variance of phi(t) over that of t.
    """
    return max(0.0, 1 - 1 / teacher_variance) if teacher_variance > 0 else 0.0


@dataclasses.dataclass
class _Watch:
    seen: list[float] = dataclasses.field(default_factory=list)
    low: int = 0
    warned: bool = False


class CollapseMonitor:
    """Compares each watched diagnostic with its own initial value.

    Args:
        fraction: share of the initial value below which a number counts as fallen.
        information_fraction: the same for 1 - entropy, which varies more between batches.
        warmup: number of observations whose mean is the initial value.
        patience: fallen observations in a row before a warning.
        untrained: largest share of a target's variance that an untrained branch may have; 1 if the
            branch is trained (the official form trains it with the student).
    """

    def __init__(
        self,
        fraction: float = 0.5,
        information_fraction: float = 0.1,
        warmup: int = 5,
        patience: int = 5,
        untrained: float = UNTRAINED_SHARE,
    ):
        self._untrained = untrained
        self._fractions = dict.fromkeys(_MEANING, fraction)
        self._fractions["teacher_information"] = information_fraction
        self._warmup = warmup
        self._patience = patience
        self._watched: dict[str, _Watch] = {}

    def observe(self, values: Mapping[str, float]) -> list[str]:
        """Takes the diagnostics of one step, or their means over several.

        Args:
            values: `DistillOutput.diagnostics` as numbers; names may have a prefix, and names that
                are not watched are ignored. A relation entropy of exactly 0 means that no image
                had enough boxes to relate, and is ignored.

        Returns:
            Warnings, one sentence each. A number is reported once, and again only if it recovered
            in between.
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

    def _empty(self, name: str, what: str, start: float) -> list[str]:
        """Warnings about an uninformative target, judged by a number's initial value."""
        if what == "teacher_entropy" and start > FULL_ROWS[1]:
            return [
                f"empty target: {name} is {start:.3f}: the teacher's relation rows are all but "
                "uniform and teach nothing; a lower temperature, or similarity 'cosine'"
            ]
        if what == "teacher_entropy" and start < FULL_ROWS[0]:
            return [
                f"empty target: {name} is {start:.3f}: each of the teacher's relation rows holds "
                "one box alone; a higher temperature, or diagonal False"
            ]
        if what == "teacher_variance" and untrained_share(start) > self._untrained:
            return [
                f"empty target: {name} is {start:.3g}: {untrained_share(start):.0%} of what the "
                "student is shown comes from a branch that nothing trained; a smaller "
                "teacher_scale, or teacher_modules 'pretrained'"
            ]
        return []

    def _one(self, name: str, value: float) -> list[str]:
        watch = self._watched.setdefault(name, _Watch())
        what = name.rsplit("/", 1)[-1]
        if len(watch.seen) < self._warmup:
            watch.seen.append(value)
            full = len(watch.seen) == self._warmup
            return self._empty(name, what, sum(watch.seen) / self._warmup) if full else []
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
