"""Where numbers and words of a run go: metrics.jsonl, TensorBoard, the terminal."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from drkd_jax.training.tensorboard import TensorBoardWriter
from drkd_jax.training.writing import as_user_error, write_text

METRICS_FILE = "metrics.jsonl"
_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


class Metrics:
    """Writes what a run measures and says what it should say.

    `metrics.jsonl` has one JSON object a line: {"kind": "train" | "eval" | "warning", "step": ...,
    values}. Numbers that are not finite are written as null, since JSON knows none.

    Args:
        workdir: the run's folder.
        start: the step the run starts from; lines of later steps, left by a killed run, are cut
            off, since they come again.
        steps: length of the run.
        silent: writes and says nothing: for all processes but the first.

    Raises:
        UserError: here and in every method: the disk is full, or the folder cannot be written.
    """

    def __init__(self, workdir: Path, start: int, steps: int, *, silent: bool = False):
        self._path, self._silent = workdir / METRICS_FILE, silent
        if not silent:
            if self._path.exists():
                kept = [line for line in read_metrics(self._path) if line["step"] <= start]
                write_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))
            with as_user_error(workdir):
                self._file = self._path.open("a")
                self._board = TensorBoardWriter(workdir / "tensorboard", start)
        self._terminal = sys.stderr
        self._lines = not self._terminal.isatty()
        self._bar = tqdm(
            total=steps,
            initial=start,
            unit="step",
            file=self._terminal,
            disable=self._lines or silent,
            dynamic_ncols=True,
            smoothing=0.05,
        )
        self.warnings: list[str] = []

    def say(self, text: str) -> None:
        """One line for the person at the terminal."""
        if self._silent:
            return
        if self._lines:
            print(text, file=self._terminal, flush=True)
        else:
            self._bar.write(text, file=self._terminal)

    def warn(self, step: int, text: str) -> None:
        """A warning: on the terminal and in `metrics.jsonl`."""
        self.warnings.append(text)
        self.say(f"warning: step {step}: {text}")
        self._write("warning", step, {"warning": text})

    def train(self, step: int, values: Mapping[str, float], progress: Mapping[str, str]) -> None:
        """A log step.

        Args:
            step: steps done.
            values: what goes into the files.
            progress: what is shown beside the bar.
        """
        self._write("train", step, values)
        self._bar.set_postfix(progress, refresh=False)
        if self._lines:
            words = "  ".join(f"{name} {value}" for name, value in progress.items())
            self.say(f"step {step}/{self._bar.total}  {words}")

    def step(self) -> None:
        """One step is done."""
        self._bar.update()

    def evaluation(self, step: int, numbers: Mapping[str, float]) -> None:
        """The COCO numbers after a step."""
        self._write("eval", step, numbers)
        words = "  ".join(f"{name} {value:.4f}" for name, value in numbers.items())
        self.say(f"evaluation at step {step}: {words}")

    def pictures(self, step: int, drawn: Mapping[str, np.ndarray]) -> None:
        """Drawings by name, RGB, for TensorBoard."""
        if not self._silent:
            with as_user_error(self._path):
                self._board.pictures(drawn, step)

    def close(self) -> None:
        """Ends the bar and closes the files."""
        self._bar.close()
        if not self._silent:
            with as_user_error(self._path):
                self._file.close()
                self._board.close()

    def _write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        if self._silent:
            return
        clean = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        with as_user_error(self._path):
            self._file.write(json.dumps({"kind": kind, "step": step, **clean}) + "\n")
            self._file.flush()
            if kind != "warning":
                self._board.scalars(kind, values, step)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; a last line that a kill has cut short is left out."""
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


def evaluations(path: Path) -> list[tuple[int, dict[str, float]]]:
    """The step and the numbers of every evaluation in a `metrics.jsonl`.

    `Metrics`, opened before at the step that a run goes on from, has cut off what comes again.
    """
    found = [line for line in read_metrics(path) if line["kind"] == "eval"]
    return [
        (line["step"], {key: value for key, value in line.items() if key not in ("kind", "step")})
        for line in found
    ]


class CompilationCounter:
    """Counts the programs that XLA compiles (or takes from its cache) while it is active."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> CompilationCounter:
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == _COMPILE_EVENT:
            self.count += 1
