"""What is gathered between two lines of the log: values, times, and waiting for data."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

_SHORT = 10  # steps: some of them are under way while the loop turns on (`reading.AHEAD`)


class MetricAverager:
    """The steps since the last log line.

    Args:
        weights: of the distillation terms, before "distill_factor".
        batch_size: pictures a step.

    Attributes:
        counts: what the loader has counted since it was asked last (`TrainIterator.counts`).
    """

    def __init__(self, weights: Mapping[str, float], batch_size: int):
        self._weights, self._batch_size = weights, batch_size
        self._values: list[dict[str, float]] = []
        self._gradients: list[dict[str, float]] = []
        self._took: list[float] = []
        self.counts: Callable[[], dict[str, float]] = dict
        self.start()

    def start(self) -> None:
        """The clock runs from here."""
        self._since, self._waited = time.perf_counter(), 0.0

    def waited(self, seconds: float) -> None:
        """So long was the step without data."""
        self._waited += seconds

    def took(self, seconds: float) -> None:
        """So long was one turn of the loop."""
        self._took.append(seconds)

    def values(self, values: dict[str, float]) -> None:
        """The values of one step."""
        self._values.append(values)

    def gradients(self, values: dict[str, float]) -> None:
        """What was found about gradients at one step."""
        self._gradients.append(values)

    def leave_out(self, seconds: float) -> None:
        """Time that was no training."""
        self._since += seconds

    def close(self, steps_left: int) -> tuple[dict[str, float], dict[str, str]]:
        """Ends the window and opens the next.

        Args:
            steps_left: of the run.

        Returns:
            (values for the files, words for the terminal).
        """
        took = max(time.perf_counter() - self._since, 1e-9)
        values = _means(self._values, self._weights)
        if self._gradients:
            named = self._gradients[-1]
            values |= {name: float(np.mean([v[name] for v in self._gradients])) for name in named}
        rate = len(self._values) * self._batch_size / took
        values |= {"pictures_per_second": rate, "data_wait": self._waited / took} | self.counts()
        if "diag/boxes_left_out" in values:  # by the terms; the loader may have left out more
            values["diag/boxes_left_out"] += values.get("boxes_past_max", 0.0)
        # The median leaves out the steps that compiled. In a short window it is the log line, not
        # the turn of the loop, that waits for the device.
        short = len(self._took) < _SHORT
        left = steps_left * (took / len(self._values) if short else float(np.median(self._took)))
        shown = {"loss": f"{values['total']:.4f}"}
        for name in self._weights:
            loss, share = values[f"distill/{name}"], values[f"share/{name}"]
            shown[name] = f"{loss:.3g} ({share:.1%})"
        shown |= {"lr": f"{values['learning_rate']:.3g}", "img/s": f"{rate:.1f}"}
        shown["left"] = f"{left / 60:.0f} min" if left >= 120 else f"{left:.0f} s"
        self._values, self._took, self._gradients = [], [], []
        self.start()
        return values, shown


def _means(window: Sequence[Mapping[str, float]], weights: Mapping[str, float]) -> dict[str, float]:
    """Means over the steps since the last line.

    A distillation term gives "distill/TERM" (unweighted), "weight/TERM" (of these steps) and
    "share/TERM", its weighted part of the total.
    """
    means = {name: float(np.mean([values[name] for values in window])) for name in window[-1]}
    del means["finite"]
    means["learning_rate"] = window[-1]["learning_rate"]
    factors = [values.get("distill_factor", 1.0) for values in window]
    for name, weight in weights.items():
        part = weight * float(
            np.mean([f * values[name] for f, values in zip(factors, window, strict=True)])
        )
        means[f"distill/{name}"] = means.pop(name)
        means[f"weight/{name}"] = weight * float(np.mean(factors))
        means[f"share/{name}"] = part / means["total"] if means["total"] else 0.0
    return means
