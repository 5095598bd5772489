"""What a finished run leaves in `summary.json`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drkd_jax.distill.last_word import last_word
from drkd_jax.training.metrics import METRICS_FILE, read_metrics
from drkd_jax.training.processes import broadcast
from drkd_jax.training.scores import Scores
from drkd_jax.training.setup import Run
from drkd_jax.training.state import TrainState, num_parameters


def summarize(
    run: Run,
    state: TrainState,
    scores: Scores,
    seconds: float,
    warnings: Sequence[str],
) -> dict[str, Any]:
    """COCO's numbers, lengths and sizes of a run.

    Args:
        run: what was trained.
        state: at its end.
        scores: of its evaluations, one at least.
        seconds: of training over all sessions.
        warnings: that were given.
    """
    assert scores.best is not None
    step, final = scores.done[-1]
    return {
        "final": final,
        "best": scores.best[1],
        "best_step": scores.best[0],
        "steps": step,
        "ended": scores.why_over() or f"{step} steps are done",
        "seconds": seconds,
        "parameters": {
            "student": num_parameters(state.student),
            "distiller": num_parameters(state.params.get("distiller", {})),
            "teacher": run.teacher.num_parameters if run.teacher else 0,
        },
        "warnings": list(warnings),
    }


def judge_distillation(
    workdir: Path, terms: Sequence[str], student_ap: float, teacher_ap: float | None
) -> dict[str, Any]:
    """The last word of a distilled run, from the lines in its work folder; for all processes."""

    def judge() -> dict[str, Any]:
        lines = [line for line in read_metrics(workdir / METRICS_FILE) if line["kind"] == "train"]
        return last_word(lines, terms, student_ap=student_ap, teacher_ap=teacher_ap)._asdict()

    return broadcast(judge)
