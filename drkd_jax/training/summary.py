"""What a finished run leaves in `summary.json`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drkd_jax.distill.last_word import LastWord, last_word
from drkd_jax.training.metrics import METRICS_FILE, read_metrics
from drkd_jax.training.setup import Run
from drkd_jax.training.state import TrainState, num_parameters

Numbers = dict[str, float]


def summarize(
    run: Run,
    state: TrainState,
    final: Numbers,
    best: tuple[int, Numbers],
    seconds: float,
    warnings: Sequence[str],
) -> dict[str, Any]:
    """COCO's numbers, lengths and sizes of a run.

    Args:
        run: what was trained.
        state: at its end.
        final: numbers of the last evaluation.
        best: step and numbers of the best one.
        seconds: of training over all sessions.
        warnings: that were given.
    """
    return {
        "final": final,
        "best": best[1],
        "best_step": best[0],
        "steps": run.steps,
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
) -> LastWord:
    """The last word of a distilled run, from the lines in its work folder."""
    lines = [line for line in read_metrics(workdir / METRICS_FILE) if line["kind"] == "train"]
    return last_word(lines, terms, student_ap=student_ap, teacher_ap=teacher_ap)
