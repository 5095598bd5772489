"""Watches whether the two sides agree because the student learns, or because both go empty.

Where the teacher's relation modules are trained by the same loss, the easiest way down is an
embedding that says nothing. The loss cannot show it; these numbers, logged a level, can:

    teacher_norm         norm of the teacher's embedding over that of its input
    teacher_variance     its variance over the pixels over that of its input
    teacher_entropy      of the rows of the relation matrix over log n; 1 is uniform

A norm, a variance or an entropy that falls far below where it started is a collapse, and so is an
entropy that comes so near to 1 that the rows say nothing any more.

Not collapsing is not the same as meaning something, so the start itself is judged as well: rows
that are near uniform, or that hold one box alone, and targets that are a random function of the
image for the most part, are named once.
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


FULL_ROWS = (0.1, 0.95)  # row entropy over log n between which a relation says something
UNTRAINED_SHARE = 0.5  # of a target's variance from a branch that nothing trained
LEAST_SHARE = 1e-3  # of the total loss, under which a weighted term does not teach


def untrained_share(teacher_variance: float) -> float:
    """Share of the target's variance that the branch adds to the map's own.

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
    """Compares each watched diagnostic with its own start.

    Args:
        fraction: of the start, below which a number counts as fallen.
        information_fraction: the same for 1 - entropy, which moves more from batch to batch.
        warmup: observations that make the start (their mean).
        patience: fallen observations in a row before a warning.
        untrained: largest share of a target's variance that an untrained branch may have; 1 where
            the branch is trained (the official form trains it with the student).
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
        """Takes in the diagnostics of one step, or their means over several.

        Args:
            values: `DistillOutput.diagnostics` as numbers; names may carry a prefix, and names
                that are not watched are passed over. A relation entropy of exactly 0 means that no
                picture had boxes enough to relate, and is passed over.

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

    def _empty(self, name: str, what: str, start: float) -> list[str]:
        """What the start of a number says about the target."""
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
