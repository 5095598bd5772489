"""The page that the demo leaves: its first pair of students and their teacher."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drkd_jax.report.page.runs import RunFiles, read_run
from drkd_jax.report.page.scores import DRAWS
from drkd_jax.report.page.write import page
from drkd_jax.report.pictures import DISTILLED, PLAIN, TEACHER
from drkd_jax.report.relations import Relations


def demo_page(
    folders: Mapping[str, Path],
    configs: Mapping[str, dict[str, Any]],
    results: Mapping[str, Any],
    shown: Relations | None,
    draws: int = DRAWS,
) -> str:
    """One HTML page about a demo.

    Args:
        folders: The run of each kind (`pictures.KINDS`), finished.
        configs: Of each kind that was trained here.
        results: What ``results.json`` holds.
        shown: The distilled run's relations on one picture.
        draws: Of the validation pictures, for the intervals.
    """
    runs = [
        _run(kind, folders[kind], configs.get(kind, {}), results)
        for kind in (PLAIN, DISTILLED, TEACHER)
    ]
    data, seeds = results["data"], len(results["drkd_minus_plain"])
    words = [
        f"The students learn from {data['train_pictures']} labelled pictures ({data['train']}, "
        f"{data['train_boxes']} objects), the teacher learnt from {results['teacher']['train']}.",
        *results["verdict"],
        results["last_word"]["text"],
    ]
    if seeds > 1:
        words.append(f"All {seeds} pairs of students are in results.md; below is the first one.")
    title = f"DRKD demo: {results['detector']}"
    relations = None if shown is None else (shown, {"teacher": TEACHER, "student": DISTILLED})
    return page(runs, title=title, words=words, relations=relations, draws=draws)


def _run(kind: str, folder: Path, config: dict[str, Any], results: Mapping[str, Any]) -> RunFiles:
    row = next(row for row in results["runs"] if row["folder"] == folder.name)
    summary = {
        "parameters": {"student": row["parameters"]},
        "steps": row["steps"],
        "best_step": row["best_step"],
        "seconds": row["train_seconds"],
        "warnings": row["warnings"],
    }
    return dataclasses.replace(
        read_run(kind, folder), data=results["data"]["val"], config=config, summary=summary
    )
