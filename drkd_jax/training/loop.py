"""The training loop with metrics, checkpoints and evaluations."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from absl import flags

from drkd_jax.data.pipeline import train_loader
from drkd_jax.data.skipped import SKIPPED_FILE
from drkd_jax.fault_tolerance import same_run
from drkd_jax.fault_tolerance.checkpoint import Checkpoints
from drkd_jax.fault_tolerance.interrupt import InterruptedRunError, StopRequest, stop_request
from drkd_jax.fault_tolerance.lock import locked, require_shared
from drkd_jax.fault_tolerance.processes import (
    AnyProcess,
    allgather,
    broadcast,
    is_first,
    stop_unbegun,
)
from drkd_jax.fault_tolerance.writing import make_folder, write_json
from drkd_jax.monitoring.metrics import METRICS_FILE, Metrics, evaluations
from drkd_jax.monitoring.tensorboard import draw_scenes
from drkd_jax.monitoring.trace import Trace, read_steps
from drkd_jax.paths import expand_home
from drkd_jax.step.sharding import put_batch, put_everywhere, replicated
from drkd_jax.step.state import Arrays, TrainState
from drkd_jax.training.async_metrics import AHEAD, AsyncMetrics, largest_untrained_share
from drkd_jax.training.describe import describe, findings, other_classes, weak_teacher
from drkd_jax.training.evaluate import (
    EvaluationStoppedError,
    Predict,
    evaluate,
    predictor,
    write_evaluation,
)
from drkd_jax.training.pretrain import with_pretrained_units
from drkd_jax.training.scores import Scores, judge_distillation, summarize
from drkd_jax.training.setup import Run, build_run
from drkd_jax.types import Batch


def train(config: Mapping[str, Any], workdir: str | Path, *, profile: str = "") -> dict[str, Any]:
    """Trains as the config says, continuing from the newest checkpoint in the work folder.

    Several processes (after `processes.connect`) all call it with the same arguments and must share
    the work folder: each writes its share of the checkpoints, the first process everything else.

    Args:
        config: plain nested dict with the keys of `recipes/common.py`.
        workdir: contains, afterwards, `config.json`, `metrics.jsonl`, `tensorboard/`,
            `checkpoints/`, `best/`, `eval.json`, `detections.json`, `summary.json`, `lock`.
        profile: steps to trace into `profile/`: "5", or "100:110".

    Returns:
        `final` and `best` (COCO numbers), `best_step`, the number of `steps` done and why the run
        `ended`, `seconds` of training over all sessions, `parameters` (student, distiller,
        teacher), `warnings`, and, if it distilled, `distillation` (see `monitoring/last_word.py`:
        `text` and `numbers`).

    Raises:
        UserError: a fault that the user can correct, before anything is overwritten.
        NonFiniteError: with the step, the terms and the image ids; the last checkpoint is good.
        InterruptedRunError: a signal asked to stop; a checkpoint was written, or nothing was
            trained yet.
    """
    if not flags.FLAGS.is_parsed():  # Grain's workers read absl's flags
        flags.FLAGS.mark_as_parsed()
    workdir = Path(expand_home(str(workdir)))
    read_steps(profile, 0)
    with stop_request() as request, contextlib.ExitStack() as stack:
        same_run.require_same_program(config)
        run = build_run(config)
        stop_unbegun(request.name)

        def acquire() -> str:
            make_folder(workdir, "--workdir")
            return stack.enter_context(locked(workdir))

        require_shared(workdir, broadcast(acquire))
        checkpoints = stack.enter_context(contextlib.closing(Checkpoints(workdir, run.train.keep)))
        return _Session(run, workdir, checkpoints, profile).finish(request)


class _Session:
    """One process's share of a run, from its start or a checkpoint to its end or a signal."""

    def __init__(self, run: Run, workdir: Path, checkpoints: Checkpoints, profile: str):
        self.run, self.workdir, self.checkpoints = run, workdir, checkpoints
        self.state: TrainState = run.state
        self.loader = train_loader(
            run.train_source,
            run.pipeline,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            skipped=self._skipped(),
        )
        self.start, self.seconds = 0, 0.0
        self.silent: list[list[Any]] = []  # silent terms of the checkpoint
        self.teacher_ap: float | None = None  # if teacher.evaluate asks for it
        sources = {"train": run.train_source, "val": run.val_source}
        read = run.teacher if run.teacher and run.config["teacher"].get("checkpoint") else None
        self.fingerprint = same_run.common_fingerprints(sources, read and read.arrays)
        self.compared: set[tuple[int, ...]] = set()  # shapes whose gradients were compared
        self._resume()
        traced = read_steps(profile, self.start, run.steps)
        self.trace = Trace(workdir, traced, silent=not is_first())
        self.metrics = Metrics(workdir, self.start, run.steps, silent=not is_first())
        self.async_metrics = AsyncMetrics(run, self.metrics, checkpoints, self.silent)
        self.async_metrics.averager.counts = self.loader.counts
        done = broadcast(lambda: evaluations(workdir / METRICS_FILE))  # JSON has lists, not tuples
        best = checkpoints.best()
        scored = list(map(tuple, done)) if best else []  # if the best one is gone, score again
        self.scores = Scores(run.train, run.steps, scored, best)

    def finish(self, request: StopRequest) -> dict[str, Any]:
        """Trains to the end.

        Args:
            request: tells whether a signal asked to stop.
        """
        try:
            self._open(request)
            stop_unbegun(request.name, self.start)
            self._steps(request)
            self.checkpoints.wait()
            return self._summary(self._training_seconds())
        finally:
            self.trace.stop()
            self.metrics.close()
            self.loader.close()

    def _skipped(self) -> Path | None:
        return self.workdir / SKIPPED_FILE if is_first() else None

    def _resume(self) -> None:
        latest, about = self.checkpoints.latest_step(), self.checkpoints.about()
        if about:  # of the best checkpoint if the run was killed before it had another
            same_run.check_same_run(about["config"], self.run.config, self.workdir)
            same_run.check_same_classes(about["categories"], self.run.categories, self.workdir)
            then = about.get("fingerprint", {})
            self.run.warnings += same_run.changed_data(then, self.fingerprint)
            self.run.warnings += same_run.changed_scoring(about["config"], self.run.config)
        if latest is not None:
            self.state = self.checkpoints.restore(self.state, replicated(self.run.mesh))
            # Arrays from orbax may be its own read-only memory, but the step overwrites its state.
            self.state = put_everywhere(self.state, self.run.mesh)
            self.loader.set_state(about["data"])
            self.start, self.seconds = latest, float(about["seconds"])
            self.silent = about.get("silent", [])
        if is_first() and self.start < self.run.steps:  # a finished run keeps its own config
            write_json(self.workdir / "config.json", self.run.config)

    def _open(self, request: StopRequest) -> None:
        run = self.run
        for line in describe(run, self.start):
            self.metrics.say(line)
        for warning in findings(run, self.metrics.say):
            self.metrics.warn(self.start, warning, passes=warning in run.of_length)
        if run.teacher is not None and run.config["teacher"].get("evaluate"):
            self._evaluate_teacher(request)
        if run.teacher is not None and self.start == 0:  # afterwards the checkpoint has the units
            self._pretrain(request)

    def _pretrain(self, request: StopRequest) -> None:
        say, stop = self.metrics.say, self._stop(request)
        state = with_pretrained_units(self.run, self.state, self.workdir, say, stop)
        if state is None:
            raise InterruptedRunError(
                f"{request.name or 'asked to stop'} while the teacher's units were trained: there "
                "was nothing to save; the same command begins again"
            )
        self.state = state

    def _evaluate_teacher(self, request: StopRequest) -> None:
        run = self.run
        assert run.teacher is not None
        if other_classes(run):
            self.metrics.say("teacher    not evaluated: its classes are not those of the data")
            return
        pixels = run.recipe.teacher_pixels or run.pixels
        predict = predictor(run.teacher.graph, pixels, run.mesh, run.eval.least_limit)
        try:
            numbers, _ = self._score(predict, (run.teacher_arrays,), request)
        except EvaluationStoppedError:
            return
        self.teacher_ap = numbers["AP"]
        if weak := weak_teacher(numbers["AP"], run.val_source.spec):
            self.metrics.warn(self.start, weak)
        words = "  ".join(f"{name} {value:.4f}" for name, value in numbers.items())
        self.metrics.say(f"teacher    on {run.val_source.spec}: {words}")

    def _steps(self, request: StopRequest) -> None:
        run, settings = self.run, self.run.train
        # Like the values, the answer whether any process wants to stop is read late.
        any_stops = AnyProcess(run.mesh, AHEAD)
        self.since = time.perf_counter()
        # A run killed between a checkpoint and the evaluation of the same step evaluates now.
        if self.start and self.scores.due(self.start):
            self._evaluate(self.start, request)
        if self.scores.why_over():
            return
        averager = self.async_metrics.averager
        averager.start()
        for done in range(self.start + 1, run.steps + 1):
            self.trace.before(done)
            before = time.perf_counter()
            batch = next(self.loader)
            averager.waited(time.perf_counter() - before)
            if settings.log_gradients and done % settings.log_gradients == 0:
                before += self._gradients(batch)
            with jax.profiler.StepTraceAnnotation("train", step_num=done):
                self.state, values = run.step(self.state, run.teacher_arrays, run.put(batch))
            self.async_metrics.add(done, values, np.asarray(batch.index))
            averager.took(time.perf_counter() - before)
            self.metrics.step()
            last = done == run.steps
            stop = any_stops(request.name is not None)
            if self.trace.ends_with(done, last):
                self.async_metrics.read_all()  # waits for the traced steps
                self.trace.stop()
                self.metrics.say(f"profile    written to {self.trace.folder}")
            if done % settings.log_every == 0 or last:
                self.loader.share_skipped(allgather)
                self.async_metrics.log(done)
            if done % settings.checkpoint_every == 0 or last or stop:
                self._save(done)
            if self.scores.due(done) and not (stop and not last):
                self._evaluate(done, request)
                if self.scores.why_over():
                    self._end_early(done)
                    return
            if stop and not last:
                self._interrupt(done, request)

    def _end_early(self, step: int) -> None:
        self.metrics.say(self.scores.why_over())
        if step % self.run.train.log_every:  # logs the unfinished window
            self.loader.share_skipped(allgather)
            self.async_metrics.log(step)
        self._save(step)

    def _gradients(self, batch: Batch) -> float:
        """Compares the terms' gradients before the next step; returns the seconds it took."""
        begun, report = time.perf_counter(), self.run.gradients
        assert report is not None
        found = report(self.state, self.run.teacher_arrays, put_batch(batch, self.run.mesh))
        self.async_metrics.averager.gradients(found.to_dict())
        took = time.perf_counter() - begun
        shape = batch.images.shape
        if shape not in self.compared:
            self.compared.add(shape)
            self.metrics.say(
                f"gradients  their program, compiled for {shape[1]}x{shape[2]}: {took:.1f} s"
            )
        self.async_metrics.averager.leave_out(took)
        return took

    def _interrupt(self, step: int, request: StopRequest) -> NoReturn:
        self._save(step)
        self.checkpoints.wait()
        raise InterruptedRunError(
            f"{request.name or 'asked to stop'} at step {step} of {self.run.steps}: a checkpoint "
            f"is written in {self.workdir}; the same command goes on from there"
        )

    def _about(self) -> dict[str, Any]:
        return {
            "config": self.run.config,
            "categories": self.run.categories,
            "fingerprint": self.fingerprint,
            "data": self.loader.get_state(),
            "seconds": self._training_seconds(),
            "silent": self.async_metrics.silent,
        }

    def _training_seconds(self) -> float:
        return self.seconds + time.perf_counter() - self.since

    def _save(self, step: int) -> None:
        self.async_metrics.read_all()
        if step != self.checkpoints.latest_step():
            self.checkpoints.save(self.state, self._about())

    def _evaluate(self, step: int, request: StopRequest) -> None:
        self.async_metrics.read_all()
        before = time.perf_counter()
        run, state = self.run, self.state
        try:
            numbers, found = self._score(run.predict, state.student, request)
        except EvaluationStoppedError:  # it is repeated when the run continues
            self._interrupt(step, request)
        # The best checkpoint first: a run killed in between evaluates again.
        if self.scores.is_better(numbers):
            self.checkpoints.save_best(state, {**self._about(), "numbers": numbers})
            self.scores.best = step, numbers
        if is_first():
            most = run.eval.max_images
            write_evaluation(self.workdir, step, run.val_source, numbers, found, most)
            of = run.train.tensorboard_images, most
            self.metrics.images(step, draw_scenes(run.val_source, found, *of))
        self.metrics.evaluation(step, numbers)
        self.scores.done.append((step, numbers))
        took = time.perf_counter() - before
        self.since += took  # excluded from the training time
        self.async_metrics.averager.leave_out(took)

    def _score(
        self, predict: Predict, arrays: Arrays, request: StopRequest
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        run = self.run
        return evaluate(
            predict,
            arrays,
            run.val_source,
            run.pipeline,
            run.eval,
            run.mesh,
            stop=self._stop(request),
            skipped=self._skipped(),
        )

    def _stop(self, request: StopRequest) -> Callable[[], bool]:
        """A function that tells whether any process must stop; all must call it in step."""
        any_stops = AnyProcess(self.run.mesh, 1)
        return lambda: any_stops(request.name is not None)

    def _summary(self, seconds: float) -> dict[str, Any]:
        run, told = self.run, (self.metrics.warnings, self.fingerprint.get("teacher"))
        summary = summarize(run, self.state, self.scores, seconds, *told)
        if self.start == summary["steps"]:
            self.metrics.say(f"this run is finished: {summary['ended']}")
        if run.weights:
            share = largest_untrained_share(run.distillation)
            known = tuple(run.weights), summary["final"]["AP"], self.teacher_ap, share
            asked = bool(run.config["teacher"].get("evaluate"))
            judged = judge_distillation(self.workdir, *known, asked)
            self.metrics.say(f"distilled  {judged['text']}")
            summary["distillation"] = judged
        if is_first():
            write_json(self.workdir / "summary.json", summary)
        return summary
