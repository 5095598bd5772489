"""The run: step after step, with its metrics, checkpoints and evaluations, until it is done.

Nothing waits for a step that was just started: values are read a few steps late, and everything
read is read before anything is written. So a state that is not finite never reaches the disk.
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from drkd_jax.data.pipeline import train_loader
from drkd_jax.distill.monitor import CollapseMonitor
from drkd_jax.errors import UserError
from drkd_jax.training.checkpoint import Checkpoints, check_same_run
from drkd_jax.training.describe import describe
from drkd_jax.training.evaluate import evaluate, predictor, write_evaluation
from drkd_jax.training.interrupt import (
    InterruptedRunError,
    NonFiniteError,
    StopRequest,
    stop_request,
)
from drkd_jax.training.metrics import METRICS_FILE, Metrics, read_metrics
from drkd_jax.training.setup import Run, build_run
from drkd_jax.training.sharding import put_batch, put_everywhere, replicated
from drkd_jax.training.silence import Silence
from drkd_jax.training.state import TrainState, num_parameters
from drkd_jax.training.step import StepValues
from drkd_jax.training.teacher import compare_classes

_AHEAD = 3  # steps that may be under way before the oldest one's values are read
_REPORTED = ("total", "gradient_norm", "parameter_norm", "learning_rate", "finite")


class Pending(NamedTuple):
    """A step under way: which one, its values on the device, and the pictures it saw."""

    step: int  # steps done once it is through
    values: StepValues
    pictures: np.ndarray  # positions in the source, [B]; -1 for a filling picture


def train(config: Mapping[str, Any], workdir: str | Path) -> dict[str, Any]:
    """Trains as the config says, going on from the newest checkpoint in the work folder.

    Args:
        config: plain nested dict with the keys of `configs/common.py`.
        workdir: holds, afterwards, `config.json`, `metrics.jsonl`, `tensorboard/`,
            `checkpoints/`, `best/`, `eval.json`, `detections.json`, `summary.json`.

    Returns:
        `final` and `best` (COCO numbers), `best_step`, `steps`, `seconds` of training over all its
        sittings, `parameters` (student, distiller, teacher), `warnings`.

    Raises:
        UserError: what the user can mend, before anything is overwritten.
        NonFiniteError: with the step, the terms and the picture ids; the last checkpoint is good.
        InterruptedRunError: a signal asked for the end; a checkpoint is written.
    """
    if not flags.FLAGS.is_parsed():  # Grain's workers read absl's flags
        flags.FLAGS.mark_as_parsed()
    workdir = Path(workdir)
    run = build_run(config)
    _make_folder(workdir)
    checkpoints = Checkpoints(workdir, run.train.keep)
    try:
        return _Sitting(run, workdir, checkpoints).finish()
    finally:
        checkpoints.close()


class _Sitting:
    """One process's share of a run."""

    def __init__(self, run: Run, workdir: Path, checkpoints: Checkpoints):
        self.run, self.workdir, self.checkpoints = run, workdir, checkpoints
        self.state: TrainState = run.state
        self.loader = train_loader(
            run.train_source,
            run.pipeline,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        self.start, self.seconds = 0, 0.0
        self._resume()
        self.metrics = Metrics(workdir, self.start, run.steps)
        self.silence: Silence | None = None
        self.monitor = CollapseMonitor()  # a sitting's start is what it compares with
        self.pending: deque[Pending] = deque()
        self.window: list[dict[str, float]] = []  # values of the steps since the last log line
        self.took: list[float] = []  # seconds of each of them
        self.evaluated: tuple[int, dict[str, float]] | None = self._last_evaluation()
        self.best = checkpoints.best()  # step and numbers
        self.since = time.perf_counter()
        self.log_since, self.waited = self.since, 0.0

    def finish(self) -> dict[str, Any]:
        """Trains to the end."""
        try:
            self._open()
            with stop_request() as request:
                self._steps(request)
            return self._summary(self._training_seconds())
        finally:
            self.metrics.close()

    def _resume(self) -> None:
        latest = self.checkpoints.latest_step()
        if latest is not None:
            about = self.checkpoints.about()
            check_same_run(about["config"], self.run.config, self.workdir)
            self.state = self.checkpoints.restore(self.state, replicated(self.run.mesh))
            # Arrays that orbax made may be read-only memory of its own; the step writes into its.
            self.state = put_everywhere(self.state, self.run.mesh)
            self.loader.set_state(about["data"])
            self.start, self.seconds = latest, float(about["seconds"])
        text = json.dumps(self.run.config, indent=2)
        (self.workdir / "config.json").write_text(text + "\n")

    def _last_evaluation(self) -> tuple[int, dict[str, float]] | None:
        lines = read_metrics(self.workdir / METRICS_FILE)
        found = [line for line in lines if line["kind"] == "eval"]
        if not found:
            return None
        numbers = {k: v for k, v in found[-1].items() if k not in ("kind", "step")}
        return found[-1]["step"], numbers

    def _open(self) -> None:
        run = self.run
        for line in describe(run, self.start):
            self.metrics.say(line)
        for warning in run.warnings:
            self.metrics.warn(self.start, warning)
        if run.teacher is None:
            return
        names = tuple(category.name for category in run.train_source.categories)
        differing = compare_classes(run.teacher.categories, names)
        if differing:
            self.metrics.warn(self.start, differing)
        if run.config["teacher"].get("evaluate"):
            self._evaluate_teacher(comparable=differing is None)

    def _evaluate_teacher(self, comparable: bool) -> None:
        run = self.run
        assert run.teacher is not None
        if not comparable:
            self.metrics.say("teacher    not evaluated: its classes are not those of the data")
            return
        predict = predictor(run.teacher.graph, run.pixels, run.mesh)
        numbers, _ = evaluate(
            predict, (run.teacher_arrays,), run.val_source, run.pipeline, run.eval, run.mesh
        )
        words = "  ".join(f"{name} {value:.4f}" for name, value in numbers.items())
        self.metrics.say(f"teacher    on {run.val_source.spec}: {words}")

    def _steps(self, request: StopRequest) -> None:
        run, settings = self.run, self.run.train
        # A run killed between a checkpoint and the evaluation of the same step makes it up.
        if self.start and self._evaluation_due(self.start):
            self._evaluate(self.start)
        self.since = self.log_since = time.perf_counter()
        for done in range(self.start + 1, run.steps + 1):
            before = time.perf_counter()
            batch = next(self.loader)
            self.waited += time.perf_counter() - before
            self.state, values = run.step(
                self.state, run.teacher_arrays, put_batch(batch, run.mesh)
            )
            self.pending.append(Pending(done, values, np.asarray(batch.index)))
            if len(self.pending) > _AHEAD:
                self._read(self.pending.popleft())
            self.took.append(time.perf_counter() - before)
            self.metrics.step()
            last = done == run.steps
            if done % settings.log_every == 0 or last:
                self._log(done)
            if done % settings.checkpoint_every == 0 or last or request.name:
                self._save(done)
            if self._evaluation_due(done):
                self._evaluate(done)
            if request.name and not last:
                raise InterruptedRunError(
                    f"{request.name} at step {done} of {run.steps}: a checkpoint is written in "
                    f"{self.workdir}; the same command goes on from there"
                )

    def _read_all(self) -> None:
        while self.pending:
            self._read(self.pending.popleft())

    def _read(self, pending: Pending) -> None:
        values = pending.values.to_dict()
        if not values["finite"]:
            self._stop_non_finite(pending, values)
        self.window.append(values)
        if self.silence is None:
            run = self.run
            own = tuple(
                name
                for name in values
                if name not in (*_REPORTED, *run.weights) and not name.startswith("diag/")
            )
            self.silence = Silence(
                run.weights, own, run.train.silence_steps, run.train.silence_share
            )
            for warning in self.silence.at_start():
                self.metrics.warn(pending.step, warning)
        for warning in self.silence.observe(values):
            self.metrics.warn(pending.step, warning)

    def _stop_non_finite(self, pending: Pending, values: Mapping[str, float]) -> None:
        wrong = [name for name, value in values.items() if not math.isfinite(value)]
        # The terms first of all; what follows from them is named where no term is to blame.
        bad = [name for name in wrong if name not in _REPORTED and "/" not in name] or wrong
        source = self.run.train_source
        ids = [source.meta(int(index)).image_id for index in pending.pictures if index >= 0]
        latest = self.checkpoints.latest_step()
        kept = f"the checkpoint of step {latest} is good" if latest else "no checkpoint was written"
        message = (
            f"not finite at step {pending.step}: {', '.join(bad)}; pictures {ids} of "
            f"{source.spec}; {kept}. A lower learning rate, a longer warm-up or "
            "train.clip_norm may help"
        )
        self.metrics.warn(pending.step, message)
        raise NonFiniteError(message)

    def _log(self, step: int) -> None:
        self._read_all()
        now = time.perf_counter()
        took = max(now - self.log_since, 1e-9)
        values = _means(self.window, self.run.weights)
        rate = len(self.window) * self.run.train.batch_size / took
        for warning in self.monitor.observe(values):
            self.metrics.warn(step, warning)
        values |= {"pictures_per_second": rate, "data_wait": self.waited / took}
        # The median leaves out the steps that compiled.
        left = (self.run.steps - step) * float(np.median(self.took))
        shown = {"loss": f"{values['total']:.4f}"}
        for name in self.run.weights:
            loss, share = values[f"distill/{name}"], values[f"share/{name}"]
            shown[name] = f"{loss:.3g} ({share:.1%})"
        shown |= {"lr": f"{values['learning_rate']:.3g}", "img/s": f"{rate:.1f}"}
        shown["left"] = f"{left / 60:.0f} min" if left >= 120 else f"{left:.0f} s"
        self.metrics.train(step, values, shown)
        self.window, self.took, self.log_since, self.waited = [], [], now, 0.0

    def _about(self) -> dict[str, Any]:
        return {
            "config": self.run.config,
            "categories": self.run.categories,
            "data": self.loader.get_state(),
            "seconds": self._training_seconds(),
        }

    def _training_seconds(self) -> float:
        return self.seconds + time.perf_counter() - self.since

    def _save(self, step: int) -> None:
        self._read_all()
        if step != self.checkpoints.latest_step():
            self.checkpoints.save(self.state, self._about())

    def _evaluation_due(self, step: int) -> bool:
        every = self.run.train.eval_every
        due = step == self.run.steps or (every > 0 and step % every == 0)
        return due and (self.evaluated is None or self.evaluated[0] != step)

    def _evaluate(self, step: int) -> None:
        self._read_all()
        before = time.perf_counter()
        run, state = self.run, self.state
        arrays = (state.params["student"], state.rest["student"])
        numbers, found = evaluate(
            run.predict, arrays, run.val_source, run.pipeline, run.eval, run.mesh
        )
        # The best one first: a run killed in between evaluates again.
        if self.best is None or numbers["AP"] > self.best[1]["AP"]:
            self.checkpoints.save_best(state, {**self._about(), "numbers": numbers})
            self.best = step, numbers
        write_evaluation(self.workdir, step, run.val_source, numbers, found)
        self.metrics.evaluation(step, numbers)
        self.evaluated = step, numbers
        took = time.perf_counter() - before  # not training time
        self.log_since, self.since = self.log_since + took, self.since + took

    def _summary(self, seconds: float) -> dict[str, Any]:
        state, teacher = self.state, self.run.teacher
        assert self.evaluated is not None
        assert self.best is not None
        if self.start == self.run.steps:
            self.metrics.say(f"this run is finished: {self.run.steps} steps are done")
        summary = {
            "final": self.evaluated[1],
            "best": self.best[1],
            "best_step": self.best[0],
            "steps": self.run.steps,
            "seconds": seconds,
            "parameters": {
                "student": num_parameters((state.params["student"], state.rest["student"])),
                "distiller": num_parameters(state.params.get("distiller", {})),
                "teacher": teacher.num_parameters if teacher else 0,
            },
            "warnings": self.metrics.warnings,
        }
        (self.workdir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        return summary


def _means(window: Sequence[Mapping[str, float]], weights: Mapping[str, float]) -> dict[str, float]:
    """Means over the steps since the last line.

    A distillation term gives "distill/TERM" (unweighted), "weight/TERM" and "share/TERM", its
    weighted part of the total.
    """
    means = {name: float(np.mean([values[name] for values in window])) for name in window[-1]}
    del means["finite"]
    means["learning_rate"] = window[-1]["learning_rate"]
    for name, weight in weights.items():
        loss = means[f"distill/{name}"] = means.pop(name)
        means[f"weight/{name}"] = weight
        means[f"share/{name}"] = weight * loss / means["total"] if means["total"] else 0.0
    return means


def _make_folder(workdir: Path) -> None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir={workdir}: cannot be made ({error.strerror})") from error
