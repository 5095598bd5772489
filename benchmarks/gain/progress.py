"""One bar over the steps of all runs; text lines if the output is not a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from benchmarks.gain.plan import Job


class Bar:
    """Shows steps, their rate, and how long the rest will take.

    Args:
        jobs: All jobs.
        terminal: A text file; None for stderr.
    """

    def __init__(self, jobs: Sequence[Job], terminal: Any = None):
        self._terminal = terminal or sys.stderr
        self._total = sum(job.steps for job in jobs)
        self._number = len(jobs)
        self._lines = not self._terminal.isatty()
        self._since, self._first = time.monotonic(), 0
        self._bar: tqdm | None = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def start(self, steps: int) -> None:
        """Sets the number of steps that were done before this call."""
        self._since, self._first = time.monotonic(), steps
        if not self._lines:
            self._bar = tqdm(
                total=self._total,
                initial=steps,
                unit="step",
                file=self._terminal,
                dynamic_ncols=True,
                smoothing=0.02,
            )

    def at(self, steps: int) -> None:
        """Sets the number of steps that are done now."""
        if self._bar is not None and steps != self._bar.n:
            self._bar.update(steps - self._bar.n)

    def say(self, text: str, steps: int) -> None:
        """Prints a line, with the remaining time if no bar is drawn."""
        if self._bar is not None:
            self._bar.write(text, file=self._terminal)
            return
        fresh = steps - self._first
        left = ""
        if fresh > 0 and steps < self._total:
            minutes = (time.monotonic() - self._since) * (self._total - steps) / fresh / 60
            left = f", about {minutes:.0f} min left"
        words = f"{text}; {steps} of {self._total} steps in {self._number} runs{left}"
        print(words, file=self._terminal, flush=True)
