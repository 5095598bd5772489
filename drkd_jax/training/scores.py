"""The evaluations of a run: when one is due, which is the best, and when to stop early.

Also the summary of a finished run in `summary.json`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drkd_jax.fault_tolerance.processes import broadcast
from drkd_jax.monitoring.collapse import UNTRAINED_SHARE
from drkd_jax.monitoring.last_word import last_word
from drkd_jax.monitoring.metrics import METRICS_FILE, read_metrics
from drkd_jax.step.settings import TrainSettings
from drkd_jax.step.state import TrainState, num_parameters
from drkd_jax.training.setup import Run
from drkd_jax.words import counted

Numbers = dict[str, float]


@dataclasses.dataclass
class Scores:
    """The evaluations so far; the same on every process of a run.

    After a kill they are restored from `metrics.jsonl` and the best checkpoint. That checkpoint may
    be of a later step than the one the run continues from; evaluations up to it are then ignored.

    Attributes:
        train: settings of the run.
        steps: length of the run.
        done: step and numbers of each evaluation, in order.
        best: step and numbers of the best checkpoint.
    """

    train: TrainSettings
    steps: int
    done: list[tuple[int, Numbers]]
    best: tuple[int, Numbers] | None

    def due(self, step: int) -> bool:
        """Whether an evaluation is scheduled after this step and not done yet."""
        every = self.train.eval_every
        due = step >= self.steps or (every > 0 and step % every == 0)
        return due and step not in [of for of, _ in self.done[-1:]]

    def is_better(self, numbers: Numbers) -> bool:
        """Whether the AP is higher than that of the best checkpoint."""
        return self.best is None or numbers["AP"] > self.best[1]["AP"]

    def why_over(self) -> str:
        """Why the run ends before its last step, as text; "" if it continues."""
        patience = self.train.early_stop
        if not patience or self.best is None or not self.done:
            return ""
        last, best = self.done[-1][0], self.best[0]
        vain = sum(step > best for step, _ in self.done)
        if vain < patience or last >= self.steps:
            return ""
        return (
            f"stopped early at step {last} of {self.steps}: no better AP in "
            f"{counted(vain, 'evaluation')} since step {best} "
            f"(config.train.early_stop = {patience})"
        )


def summarize(
    run: Run,
    state: TrainState,
    scores: Scores,
    seconds: float,
    warnings: Sequence[str],
    teacher: str | None,
) -> dict[str, Any]:
    """COCO's numbers, lengths and sizes of a run.

    Args:
        run: what was trained.
        state: the state at its end.
        scores: its evaluations, at least one.
        seconds: training time over all sessions.
        warnings: the warnings of the run.
        teacher: `same_run.teacher_digest` of the teacher; None: no weights were read.
    """
    assert scores.best is not None
    step, final = scores.done[-1]
    return {
        "final": final,
        "best": scores.best[1],
        "best_step": scores.best[0],
        "steps": step,
        "ended": scores.why_over() or counted(step, "step", "are done"),
        "seconds": seconds,
        "parameters": {
            "student": num_parameters(state.student),
            "distiller": num_parameters(state.params.get("distiller", {})),
            "teacher": run.teacher.num_parameters if run.teacher else 0,
        },
        "warnings": list(warnings),
        "teacher_weights": teacher,
    }


def judge_distillation(
    workdir: Path,
    terms: Sequence[str],
    student_ap: float,
    teacher_ap: float | None,
    untrained: float = UNTRAINED_SHARE,
    asked: bool = False,
) -> dict[str, Any]:
    """The final judgement of a distilled run, from the log in its work folder; for all processes.

    Args:
        workdir: work folder of the run.
        terms: the terms of its distillation.
        student_ap: AP (0..1) of the student; -1 if there is nothing to find.
        teacher_ap: likewise of the teacher; None: not measured.
        untrained: see `CollapseMonitor`.
        asked: see `last_word`.
    """

    def judge() -> dict[str, Any]:
        lines = [line for line in read_metrics(workdir / METRICS_FILE) if line["kind"] == "train"]
        word = last_word(
            lines,
            terms,
            student_ap=student_ap,
            teacher_ap=teacher_ap,
            untrained=untrained,
            asked=asked,
        )
        return word._asdict()

    return broadcast(judge)
