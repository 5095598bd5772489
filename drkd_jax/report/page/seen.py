"""Relations of a run that is named on the command line, from its newest checkpoint."""

from __future__ import annotations

from drkd_jax.errors import UserError
from drkd_jax.report.page.runs import RunFiles, open_truth
from drkd_jax.report.pictures import see_relations
from drkd_jax.report.relations import Relations


def seen(run: RunFiles) -> tuple[Relations, dict[str, str]]:
    """Runs student, teacher and relation modules on one validation picture.

    Returns:
        (the relations, names of their two sides).

    Raises:
        UserError: The run has no distillation or no checkpoint, or its data cannot be read.
    """
    if not run.config.get("distill") or not run.config.get("teacher"):
        raise UserError(f"--relations={run.name}: {run.folder} is no run with a distillation")
    if not (run.folder / "checkpoints").is_dir():
        raise UserError(
            f"--relations={run.name}: {run.folder} has no checkpoints; leave --relations out"
        )
    truth, why = open_truth(run)
    if truth is None:
        raise UserError(f"--relations={run.name}: {why}")
    shown = see_relations(truth.source, run.config, run.folder)
    return shown, {"teacher": "teacher", "student": run.name}
