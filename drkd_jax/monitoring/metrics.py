"""Writes the numbers and messages of a run to metrics.jsonl, TensorBoard and the terminal.

Also averages what is collected between two log lines: values, times, and waiting for data.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from drkd_jax.fault_tolerance.writing import as_user_error, write_text
from drkd_jax.monitoring.tensorboard import TensorBoardWriter
from drkd_jax.words import listed

METRICS_FILE = "metrics.jsonl"
_SHORT = 10  # steps; the loop is a few steps ahead of the device (`async_metrics.AHEAD`)

_log = logging.getLogger(__name__)


class Metrics:
    """Writes a run's measurements and prints its messages.

    `metrics.jsonl` has one JSON object per line: {"kind": "train" | "eval" | "warning",
    "step": ..., values}. Non-finite numbers are written as null, since JSON has none.

    Args:
        workdir: the run's folder.
        start: the step the run starts from; lines of later steps, left by a killed run, are
            removed, since those steps are repeated. Warnings stay, unless the run starts anew.
        steps: length of the run.
        silent: writes and prints nothing: for all processes but the first.

    Attributes:
        earlier: the lines kept from earlier sessions.
        warnings: those of all sessions, each text once; temporary ones of this session only.

    Raises:
        UserError: here and in every method: the disk is full, or the folder cannot be written.
    """

    def __init__(self, workdir: Path, start: int, steps: int, *, silent: bool = False):
        self._path, self._silent = workdir / METRICS_FILE, silent
        self.earlier = _kept(self._path, start)
        told = [line for line in self.earlier if line["kind"] == "warning"]
        self.warnings = list(
            dict.fromkeys(line["warning"] for line in told if not line.get("passes"))
        )
        self._told = {(line["step"], line["warning"]) for line in told}
        if not silent:
            if self._path.exists():
                write_text(self._path, "".join(json.dumps(line) + "\n" for line in self.earlier))
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

    def say(self, text: str) -> None:
        """Prints one line on the terminal."""
        if self._silent:
            return
        if self._lines:
            print(text, file=self._terminal, flush=True)
        else:
            self._bar.write(text, file=self._terminal)

    def warn(self, step: int, text: str, *, passes: bool = False) -> None:
        """Gives a warning: on the terminal and, once per step, in `metrics.jsonl`.

        Args:
            step: steps done.
            text: the warning.
            passes: whether it is temporary: each session repeats it if it still applies.
        """
        self.say(f"warning: step {step}: {text}")
        if text not in self.warnings:
            self.warnings.append(text)
        if (step, text) not in self._told:
            self._told.add((step, text))
            self._write("warning", step, {"warning": text, **({"passes": True} if passes else {})})

    def train(self, step: int, values: Mapping[str, float], progress: Mapping[str, str]) -> None:
        """Writes the log line of a step.

        Args:
            step: steps done.
            values: written to the files.
            progress: shown beside the progress bar.
        """
        self._write("train", step, values)
        self._bar.set_postfix(progress, refresh=False)
        if self._lines:
            words = "  ".join(f"{name} {value}" for name, value in progress.items())
            self.say(f"step {step}/{self._bar.total}  {words}")

    def step(self) -> None:
        """Advances the progress bar by one step."""
        self._bar.update()

    def evaluation(self, step: int, numbers: Mapping[str, float]) -> None:
        """Writes the COCO numbers after a step."""
        self._write("eval", step, numbers)
        words = "  ".join(f"{name} {value:.4f}" for name, value in numbers.items())
        self.say(f"evaluation at step {step}: {words}")

    def images(self, step: int, drawn: Mapping[str, np.ndarray]) -> None:
        """Writes drawings by name, RGB, for TensorBoard."""
        if not self._silent:
            with as_user_error(self._path):
                self._board.images(drawn, step)

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


def _kept(path: Path, start: int) -> list[dict[str, Any]]:
    """The lines that a continued run keeps, in order.

    Warnings of later steps are kept, since they may not come again: their cause may be corrected.
    """
    if start == 0 or not path.exists():
        return []
    return [
        line for line in read_metrics(path) if line["step"] <= start or line["kind"] == "warning"
    ]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, in order; each has a `kind` and a `step`.

    A last line that was truncated by a kill is left out; so is, with a warning, any other line that
    no run wrote.

    Raises:
        OSError: there is no such file, or it cannot be read.
    """
    lines, wrong = [], []
    texts = path.read_bytes().splitlines()
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):  # ValueError includes invalid UTF-8
            line = None
        if _is_line(line):
            lines.append(line)
        elif number < len(texts):
            wrong.append(number)
    if wrong:
        _log.warning("%s: not written by a run, and left out: line %s", path, listed(wrong))
    return lines


def _is_line(line: Any) -> bool:
    return (
        isinstance(line, dict)
        and isinstance(line.get("kind"), str)
        and type(line.get("step")) is int
        and (line["kind"] != "warning" or isinstance(line.get("warning"), str))
    )


def evaluations(path: Path) -> list[tuple[int, dict[str, float]]]:
    """The step and the numbers of every evaluation in a `metrics.jsonl`.

    Open `Metrics` first: it removes the lines of steps that the continued run repeats.
    """
    found = [line for line in read_metrics(path) if line["kind"] == "eval"]
    return [
        (line["step"], {key: value for key, value in line.items() if key not in ("kind", "step")})
        for line in found
    ]


class MetricAverager:
    """Averages the steps since the last log line.

    Args:
        weights: weights of the distillation terms, before "distill_factor".
        batch_size: images per step.

    Attributes:
        counts: returns the loader's counts since the last call (`TrainIterator.counts`).
    """

    def __init__(self, weights: Mapping[str, float], batch_size: int):
        self._weights, self._batch_size = weights, batch_size
        self._values: list[dict[str, float]] = []
        self._gradients: list[dict[str, float]] = []
        self._took: list[float] = []
        self.counts: Callable[[], dict[str, float]] = dict
        self.start()

    def start(self) -> None:
        """Starts the clock."""
        self._since, self._waited = time.perf_counter(), 0.0

    def waited(self, seconds: float) -> None:
        """Adds the time that a step waited for data."""
        self._waited += seconds

    def took(self, seconds: float) -> None:
        """Adds the time of one loop iteration."""
        self._took.append(seconds)

    def values(self, values: dict[str, float]) -> None:
        """Adds the values of one step."""
        self._values.append(values)

    def gradients(self, values: dict[str, float]) -> None:
        """Adds the gradient comparison of one step."""
        self._gradients.append(values)

    def leave_out(self, seconds: float) -> None:
        """Excludes time that was not spent on training."""
        self._since += seconds

    def close(self, steps_left: int) -> tuple[dict[str, float], dict[str, str]]:
        """Ends the window and starts the next.

        Args:
            steps_left: remaining steps of the run.

        Returns:
            (values for the files, texts for the terminal).
        """
        took = max(time.perf_counter() - self._since, 1e-9)
        values = _means(self._values, self._weights)
        if self._gradients:
            named = self._gradients[-1]
            values |= {name: float(np.mean([v[name] for v in self._gradients])) for name in named}
        rate = len(self._values) * self._batch_size / took
        values |= {"images_per_second": rate, "data_wait": self._waited / took} | self.counts()
        if "diag/boxes_left_out" in values:  # by the terms; the loader may have left out more
            values["diag/boxes_left_out"] += values.get("boxes_past_max", 0.0)
        # The median ignores steps that compiled. In a short window the log line, not the loop
        # iteration, waits for the device.
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
    "share/TERM", its weighted share of the total. Entropies average only steps with a relation.
    """
    means = {name: _mean(name, [values[name] for values in window]) for name in window[-1]}
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


def _mean(name: str, values: Sequence[float]) -> float:
    # Exactly 0 means that no image of the batch had boxes to relate (`CollapseMonitor.observe`).
    there = [value for value in values if value] if name.endswith("_entropy") else values
    return float(np.mean(there)) if there else 0.0
