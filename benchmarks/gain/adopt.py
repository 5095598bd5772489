"""Links runs that were trained elsewhere to the folders where a table looks for them."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks.gain.plan import Job, Plan
from benchmarks.gain.results import differences, read_json
from drkd_jax.errors import UserError
from drkd_jax.fault_tolerance.same_run import teacher_digest
from drkd_jax.models.filling import as_tuples
from drkd_jax.training.teacher import load_teacher

_NEEDED = ("summary.json", "detections.json", "config.json")


def adopt(plan: Plan, folders: Iterable[Path]) -> Iterator[str]:
    """Links each finished run to the first unstarted job of the same config.

    A distilled run must have had the table's teacher: the same folder, or the same weights. So runs
    without a teacher come first, as the table's teacher may be among them.

    Args:
        plan: The table's runs.
        folders: Work folders, or folders that contain them.

    Yields:
        A line for each run found.

    Raises:
        UserError: A folder does not exist, or a run's files cannot be read.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"--adopt {folder}: no such folder")
        found = {Path(root).resolve() for root, *_ in os.walk(folder)}
        runs = [run for run in found if all((run / name).is_file() for name in _NEEDED)]
        for run in sorted(runs, key=lambda run: (_checkpoint(run) != "", run)):
            yield _link(run, plan.jobs)


def _link(found: Path, jobs: Iterable[Job]) -> str:
    nearest: list[str] | None = None
    for job in jobs:
        wrong = differences(job, found)
        if wrong:
            nearest = wrong if nearest is None or len(wrong) < len(nearest) else nearest
            continue
        if job.folder.resolve() == found:
            return f"{found}: is in place"
        nearest = []
        if job.folder.exists():
            continue
        other = _other_teacher(job, found)
        if other:
            return f"{found}: not adopted; {other}"
        job.folder.parent.mkdir(parents=True, exist_ok=True)
        job.folder.unlink(missing_ok=True)  # a link without a target
        job.folder.symlink_to(found)
        if job.summary() is None:
            job.folder.unlink()
            return f"{found}: not adopted; it is not finished"
        return f"{found}: adopted as {job.name}"
    if nearest:
        return f"{found}: not adopted; the most similar run has another {', '.join(nearest)}"
    return f"{found}: not adopted; the run of this config is there"


def _other_teacher(job: Job, found: Path) -> str:
    """Why a run's teacher is not known to be the job's; "" if it is, or there is no teacher."""
    own, other = str((job.config.get("teacher") or {}).get("checkpoint", "")), _checkpoint(found)
    if Path(own).resolve() == Path(other).resolve():
        return ""
    weights = read_json(found, "summary.json").get("teacher_weights")
    if not weights:
        return (
            f"it was taught by {other}, the table's teacher is {own}, and its summary.json "
            "does not tell by which weights"
        )
    if job.teacher is not None and job.teacher.summary() is None:
        return f"the table's teacher, {own}, is not trained yet"
    if weights != _weights(json.dumps(job.config["teacher"])):
        return f"it was taught by other weights ({other}) than the table's teacher's, {own}"
    return ""


@functools.cache
def _weights(teacher: str) -> str:
    """`teacher_digest` of a config's teacher, given as JSON."""
    return teacher_digest(load_teacher(as_tuples(json.loads(teacher)), 0, 0).arrays)


def _checkpoint(folder: Path) -> str:
    """The teacher that a run's config names; "" if there is none."""
    return str((read_json(folder, "config.json").get("teacher") or {}).get("checkpoint", ""))
