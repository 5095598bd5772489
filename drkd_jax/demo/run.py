"""Runs the whole demo: trains the runs that are not finished, then compares all.

The teacher is an existing file, or it is trained first and saved as such a file. Every run has its
own folder in the work folder and is trained, evaluated and resumed by ``training.loop.train``. A
finished run is not trained again.
"""

from __future__ import annotations

import contextlib
import copy
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drkd_jax.data.sources import open_source
from drkd_jax.demo import DISTILLED, KINDS, PLAIN, TEACHER, Job, Recipes, teacher_file
from drkd_jax.demo.figures import demo_page, draw_figures
from drkd_jax.demo.progress import Progress, RunLog
from drkd_jax.demo.results import MAX_SEEDS, compare, results_markdown
from drkd_jax.errors import UserError
from drkd_jax.fault_tolerance.same_run import differing_keys
from drkd_jax.fault_tolerance.writing import write_json, write_text
from drkd_jax.renamed import read_about
from drkd_jax.report.relations import see_relations
from drkd_jax.report.tables import points
from drkd_jax.training.evaluate import write_evaluation
from drkd_jax.training.loop import train
from drkd_jax.weights.foreign.files import sha256

_RESAMPLES = 400


def demo(
    workdir: str | Path,
    recipes: Recipes,
    *,
    teacher: Path | None = None,
    seeds: int = 1,
    command: str = "",
) -> dict[str, Any]:
    """Trains the runs that are not finished, and writes tables and images.

    Args:
        workdir: Contains, afterwards, ``report.html``, ``results.json``, ``results.md``, the
            images, and a folder for each run. If parts of it exist, it continues from there.
        recipes: The three configs.
        teacher: The teacher's file of weights; None trains a teacher first, and leaves
            ``teacher.safetensors`` in ``workdir``.
        seeds: Number of pairs of students, with consecutive seeds from the recipes' one on.
        command: How the program was called, for the report.

    Returns:
        The content of ``results.json``.

    Raises:
        UserError: The recipes are not comparable, or the folder has a demo with other settings.
    """
    began = time.perf_counter()
    workdir = Path(workdir)
    file = teacher or workdir / "teacher.safetensors"
    jobs = _jobs(workdir, recipes, seeds, file)
    runs = jobs if teacher is None else jobs[1:]
    for job in runs:
        _check_folder(job)
    progress = Progress(sum(int(job.config["train"]["steps"]) for job in runs))
    try:
        progress.say(f"demo: {len(runs)} runs into {workdir}/: {', '.join(j.name for j in runs)}")
        trained = None
        if teacher is None:
            trained = _train(jobs[0], progress)
            if trained["seconds_now"] or not file.exists():  # an older file is of another teacher
                teacher_file.export_half(jobs[0].folder, file, trained, command)
        summaries = [_score_teacher(jobs[0], file, recipes.student, trained, progress)]
        digest = sha256(file)
        summaries += [
            _train(job, progress, digest if job.kind == DISTILLED else "") for job in jobs[1:]
        ]
        progress.stage("report")
        progress.say("report: comparing, drawing")
        results = compare(recipes, jobs, summaries, command, _RESAMPLES)
        first = {kind: next(j for j in jobs if j.kind == kind) for kind in KINDS}
        folders = {kind: job.folder for kind, job in first.items()}
        val = open_source(recipes.student["data"]["val"])
        shown = see_relations(val, first[DISTILLED].config, folders[DISTILLED])
        results["figures"] = draw_figures(workdir, val, folders, shown)
        here = time.perf_counter() - began
        all_runs = sum(run["seconds"] for run in results["runs"])
        now = sum(summary["seconds_now"] for summary in summaries)
        results["seconds"] = all_runs + max(0.0, here - now)
        write_json(workdir / "results.json", results)
        write_text(workdir / "results.md", results_markdown(results))
        configs = {kind: job.config for kind, job in first.items() if job in runs}
        page = demo_page(folders, configs, results, shown, _RESAMPLES)
        write_text(workdir / "report.html", page)
    finally:
        progress.close()
    return results


def _jobs(workdir: Path, recipes: Recipes, seeds: int, teacher: Path) -> list[Job]:
    """All runs, the teacher first; the distilled ones learn from the file ``teacher``.

    Raises:
        UserError: The two students would differ in more than the distillation.
    """
    differing = [
        key
        for key in differing_keys(recipes.student, recipes.distilled)
        if key.split(".")[0] not in ("teacher", "distill")
    ]
    if differing:
        raise UserError(
            f"the plain and the distilled recipe differ in {', '.join(differing)}: they would not "
            "be the same student"
        )
    if not 1 <= seeds <= MAX_SEEDS:
        raise UserError(f"--seeds={seeds}: 1 to {MAX_SEEDS}")
    jobs = [Job(TEACHER, TEACHER, workdir / "teacher", copy.deepcopy(recipes.teacher))]
    for i in range(seeds):
        seed = int(recipes.student["seed"]) + i
        mark, where = (f", seed {seed}", f"_seed{seed}") if seeds > 1 else ("", "")
        for kind, folder, recipe in (
            (PLAIN, f"student{where}", recipes.student),
            (DISTILLED, f"drkd{where}", recipes.distilled),
        ):
            config = {**copy.deepcopy(recipe), "seed": seed}
            if kind == DISTILLED:
                config["teacher"] = {**config["teacher"], "checkpoint": str(teacher)}
            jobs.append(Job(kind, kind + mark, workdir / folder, config))
    return jobs


def _check_folder(job: Job) -> None:
    """Refuses to mix two demos.

    Raises:
        UserError: The folder was begun with other settings; the message names them.
    """
    begun = _read_json(job.folder / "stage.json")
    if begun is None:
        return
    begun = read_about(begun)
    differing = [
        key for key in differing_keys(begun["config"], job.config) if key != "teacher.checkpoint"
    ]
    if differing:
        raise UserError(
            f"{job.folder} was begun with other settings ({', '.join(differing)}); use another "
            "--workdir, or remove this one"
        )


def _score_teacher(
    job: Job,
    file: Path,
    config: Mapping[str, Any],
    trained: Mapping[str, Any] | None,
    progress: Progress,
) -> dict[str, Any]:
    """Scores the teacher's file on the students' validation images; returns as ``_train``."""
    before = time.perf_counter()
    scored = teacher_file.score(file, config)
    job.folder.mkdir(parents=True, exist_ok=True)
    step, val = int(scored.card["step"]), open_source(config["data"]["val"])
    write_evaluation(job.folder, step, val, scored.numbers, scored.found)
    made = "made beforehand" if trained is None else "in half precision"
    progress.say(f"{job.name}: {file.name}, {made}, AP {points(scored.numbers['AP'])}")
    now = time.perf_counter() - before
    earlier = trained or {"seconds": None, "stage_seconds": 0.0, "seconds_now": 0.0, "warnings": []}
    return {
        "final": scored.numbers,
        "best_step": step,
        "steps": step,
        "seconds": earlier["seconds"],
        "stage_seconds": earlier["stage_seconds"] + now,
        "seconds_now": earlier["seconds_now"] + now,
        "parameters": {"student": scored.parameters, "distiller": 0},
        "warnings": earlier["warnings"],
        "card": {"file": file.name, "bytes": file.stat().st_size, **scored.card},
    }


def _train(job: Job, progress: Progress, teacher: str = "") -> dict[str, Any]:
    """Trains one run to its end; ``stage.json`` stores the wall-clock time over all sessions.

    Args:
        job: The run.
        progress: Receives the progress.
        teacher: SHA-256 of the teacher's file.

    Returns:
        The return value of the training, with ``stage_seconds`` (the total time of this run:
        building, compiling, training, evaluating) and ``seconds_now`` (the part in this session).

    Raises:
        UserError: The run was begun with another teacher.
    """
    steps = int(job.config["train"]["steps"])
    progress.stage(job.name)
    fresh = {"config": job.config, "seconds": 0.0, "teacher": teacher}
    stage: dict[str, Any] = _read_json(job.folder / "stage.json") or fresh
    if stage.get("teacher", "") != teacher:
        raise UserError(
            f"{job.folder} was begun with another teacher; use another --workdir, or remove "
            "this one"
        )
    summary = _read_json(job.folder / "summary.json")
    if summary is not None and stage.get("done"):
        progress.at(steps, skipped=True)
        progress.say(f"{job.name}: was finished, AP {points(summary['final']['AP'])}")
        return {**summary, "stage_seconds": stage["seconds"], "seconds_now": 0.0}
    again = ", going on" if stage["seconds"] else ""
    progress.say(f"{job.name}: {steps} steps{again}")
    job.folder.mkdir(parents=True, exist_ok=True)
    before = time.perf_counter()
    log = RunLog(job.folder / "train.log", progress)
    try:
        write_json(job.folder / "stage.json", stage)
        with contextlib.redirect_stderr(log):
            summary = train(job.config, job.folder)
        stage["done"] = True
    finally:
        log.close()
        now = time.perf_counter() - before
        stage["seconds"] += now
        write_json(job.folder / "stage.json", stage)
    progress.at(steps)
    progress.say(
        f"{job.name}: done, AP {points(summary['final']['AP'])} after {stage['seconds']:.0f} s"
    )
    return {**summary, "stage_seconds": stage["seconds"], "seconds_now": now}


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
