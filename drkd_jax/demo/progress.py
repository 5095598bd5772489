"""The terminal output of several runs in sequence: messages, and one progress bar for all.

The full output of each run goes into a file beside the run; only warnings, evaluations and the
current step are shown.
"""

from __future__ import annotations

import io
import re
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

_STEP = re.compile(r"step (\d+)/\d+ ")
_QUIET = 20.0  # seconds between two lines if no bar can be drawn


class Progress:
    """One bar over the steps of all runs; text lines if the output is not a terminal.

    Args:
        total: Steps of all runs together.
        terminal: A text file to write to; None for stderr.
    """

    def __init__(self, total: int, terminal: Any = None):
        self._terminal = terminal or sys.stderr
        self._total = max(1, total)
        self._lines = not self._terminal.isatty()
        self._bar = tqdm(
            total=self._total,
            unit="step",
            file=self._terminal,
            disable=self._lines,
            dynamic_ncols=True,
            smoothing=0.05,
        )
        self._name, self._before, self._here = "", 0, 0
        self._since, self._skipped, self._told = time.monotonic(), 0, 0.0

    def say(self, text: str) -> None:
        """Prints one line."""
        if self._lines:
            print(text, file=self._terminal, flush=True)
        else:
            self._bar.write(text, file=self._terminal)

    def stage(self, name: str) -> None:
        """Sets the name of the stage that begins."""
        self._before, self._here, self._name = self._before + self._here, 0, name
        self._bar.set_description(name)

    def at(self, step: int, *, skipped: bool = False) -> None:
        """Reports that the run of this stage has reached a step.

        Args:
            step: Steps done in this stage.
            skipped: Whether they were done before this program started, so do not show its speed.
        """
        more = step - self._here
        self._here = step
        self._skipped += more if skipped else 0
        if self._lines:
            self._tell(step)
        elif skipped:
            # tqdm computes its rate from the steps since ``initial`` and the last drawing
            self._bar.initial += more
            self._bar.n = self._bar.last_print_n = self._bar.n + more
            self._bar.refresh()
        else:
            self._bar.update(more)

    def close(self) -> None:
        """Ends the bar."""
        self._bar.close()

    def _tell(self, step: int) -> None:
        now, done = time.monotonic(), self._before + self._here
        fresh = done - self._skipped
        if fresh and now - self._told > _QUIET:
            self._told = now
            left = (now - self._since) * (self._total - done) / fresh
            self.say(
                f"{self._name}: step {step}; {done / self._total:.0%} of all steps, "
                f"{now - self._since:.0f} s so far, about {left:.0f} s left"
            )


class RunLog(io.TextIOBase):
    """Replaces a run's terminal: writes every line to a file and informs ``Progress``.

    Args:
        path: The lines are appended to this file.
        progress: Receives the steps, warnings and evaluations.
    """

    def __init__(self, path: Path, progress: Progress):
        self._file = path.open("a")
        self._progress = progress
        self._line = ""

    def writable(self) -> bool:
        """Yes."""
        return True

    def write(self, text: str) -> int:
        """Accepts complete lines and parts of lines."""
        self._file.write(text)
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self._read(line)
        return len(text)

    def flush(self) -> None:
        """Writes the lines to the disk."""
        if not self._file.closed:
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
        super().close()

    def _read(self, line: str) -> None:
        found = _STEP.match(line)
        if found:
            self._progress.at(int(found[1]))
        elif line.startswith("warning:"):
            self._progress.say(f"  {line}")
        elif line.startswith("evaluation"):
            self._progress.say("  " + "  ".join(line.split("  ")[:3]))
