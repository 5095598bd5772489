"""Detects loss terms that contribute nothing ("silent" terms).

If a wrong weight, an empty mask or a dead layer switches a distillation off, training runs on
without an error and yields a plain student.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


class InactiveLossMonitor:
    """Counts, for each term, the steps in a row in which it was silent.

    Args:
        weights: configured weights of the distillation terms; a schedule that reduces them does
            not make them silent. Other terms are only watched for being 0.
        detection: names of the detector's own terms.
        steps: silent steps in a row before a warning.
        share: a weighted distillation term under this share of the total is silent.
        counted: `counts` of the session that the run continues.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        detection: tuple[str, ...] = (),
        steps: int = 200,
        share: float = 1e-3,
        counted: Sequence[Sequence[Any]] = (),
    ):
        self._weights = dict(weights)
        self._detection = detection
        self._steps = steps
        self._share = share
        self._counts = {(what, fault): count for what, fault, count, _ in counted}
        self._named = {(what, fault) for what, fault, _, named in counted if named}

    @property
    def counts(self) -> list[list[Any]]:
        """JSON values: what is silent, how, for how many steps, and whether it was reported."""
        return [[*key, count, key in self._named] for key, count in self._counts.items()]

    def observe(self, values: Mapping[str, float]) -> list[str]:
        """Takes the values of one step.

        Args:
            values: "total" and every term, distillation terms unweighted.

        Returns:
            warnings, one sentence each: a term is reported after `steps` silent steps in a row, and
            again only if it was not silent in between.
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
            self._named.discard(key)
        if fault is None:
            return []
        count = self._counts[what, fault] = self._counts.get((what, fault), 0) + 1
        if count < self._steps or (what, fault) in self._named:
            return []
        self._named.add((what, fault))
        return [f"{what} has been {fault} for {count} steps"]
