"""Runs that were trained elsewhere, linked to where a table looks for them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks.gain.plan import Job, Plan
from benchmarks.gain.results import differences
from drkd_jax.errors import UserError

_NEEDED = ("summary.json", "detections.json", "config.json")


def adopt(plan: Plan, folders: Iterable[Path]) -> Iterator[str]:
    """Links each finished run to the first job of the same config that is not begun.

    Args:
        plan: The table's runs.
        folders: Work folders, or folders of them.

    Yields:
        A line for each run that was found.

    Raises:
        UserError: A folder does not exist.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"--adopt {folder}: no such folder")
        for found in sorted({Path(root).resolve() for root, *_ in os.walk(folder)}):
            if all((found / name).is_file() for name in _NEEDED):
                yield _link(found, plan.jobs)


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
        job.folder.parent.mkdir(parents=True, exist_ok=True)
        job.folder.unlink(missing_ok=True)  # a link to what is gone
        job.folder.symlink_to(found)
        if job.summary() is None:
            job.folder.unlink()
            return f"{found}: not adopted; it is not finished"
        return f"{found}: adopted as {job.name}"
    if nearest:
        return f"{found}: not adopted; the most similar run has another {', '.join(nearest)}"
    return f"{found}: not adopted; the run of this config is there"
