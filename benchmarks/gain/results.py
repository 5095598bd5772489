"""Results of the runs: the numbers of each run, and each arm against the reference.

Scores are AP in 0..1, as COCO gives them; NaN becomes null in JSON.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gain.paired import paired_difference
from benchmarks.gain.plan import Job, Plan
from benchmarks.gain.runner import ABOUT_FILE
from drkd_jax.errors import UserError
from drkd_jax.fault_tolerance.same_run import FREE_TO_CHANGE, differing_keys, is_default
from drkd_jax.fault_tolerance.writing import write_bytes
from drkd_jax.renamed import read_content
from drkd_jax.report.paired import METRICS, image_draws, interval, resampled_scores
from drkd_jax.report.runs import scored_images

DRAWS = 1000
_TOLERANCE = 1e-6  # between the scores of a run's summary and those of its detections
# On another machine, with data and teacher in other folders, a run is still the same: only the ends
# of these paths are compared, and the teacher's path is not.
_PATHS = ("data.train", "data.val", "student.init")
_FREE = {*FREE_TO_CHANGE, *_PATHS} - {"train.steps"}


@dataclasses.dataclass(frozen=True)
class _Scored:
    """A finished run: COCO's numbers, and its scores on each draw of the images.

    `max_images`: the number of first images that were scored, 0: all; None: unknown.
    """

    scores: dict[str, float]
    draws: dict[str, np.ndarray] | None
    max_images: int | None


def gather(plan: Plan, failed: Mapping[str, str]) -> dict[str, Any]:
    """All numbers of a table so far.

    Args:
        plan: The table's runs.
        failed: Error texts by job name.

    Returns:
        Lists of dicts: `runs`, `teachers`, `comparisons` (one for each arm, set, detector and
        budget; the reference's have no difference), `gaps` (teacher against the reference).

    Raises:
        UserError: A finished run has other settings than the table's, its files disagree, or two
            runs of a set and detector were taught by different weights.
    """
    jobs = {(*_group(job), job.place["arm"], job.place["seed"]): job for job in plan.students}
    summaries = {key: _checked(job) for key, job in jobs.items()}
    _require_one_teacher(jobs, summaries)
    scored = {
        key: _score(plan, jobs[key], summary["final"])
        for key, summary in summaries.items()
        if summary is not None
    }
    teachers = [_teacher(plan, *place) for place in plan.teachers]
    groups = list(dict.fromkeys(_group(job) for job in plan.students))
    comparisons, gaps = [], []
    for group in groups:
        of_arm = {
            arm.name: {seed: scored.get((*group, arm.name, seed)) for seed in plan.table.seeds}
            for arm in plan.table.arms
        }
        of_arm = {name: {k: v for k, v in runs.items() if v} for name, runs in of_arm.items()}
        reference = of_arm[plan.table.reference]
        for name, runs in of_arm.items():
            comparisons.append(_compare(group, name, runs, reference, plan.table.reference))
        for teacher, score in teachers:
            plain = list(reference.values())
            if (teacher["set"], teacher["detector"]) != group[:2] or not score or not plain:
                continue
            if score.max_images in (None, plain[0].max_images):  # scored on the same images
                gaps.append(_gap(group, score, plain))
    runs = [_run(jobs[key], summaries[key], failed) for key in jobs]
    return {
        "runs": runs,
        "teachers": [teacher for teacher, _ in teachers],
        "comparisons": comparisons,
        "gaps": gaps,
    }


def differences(job: Job, folder: Path) -> list[str]:
    """The keys in which a work folder's config differs from a job's, except for paths.

    Raises:
        UserError: The folder has no config.
    """
    found = read_json(folder, "config.json")
    keys = [
        key
        for key in differing_keys(found, job.config)
        if not any(key == free or key.startswith(free + ".") for free in _FREE)
        and not _is_newer(key, found, job.config)
    ]
    return keys + [key for key in _PATHS if _ends(found, key) != _ends(job.config, key)]


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Reads a JSON object from a run's folder.

    Raises:
        UserError: The file cannot be read, or has another content.
    """
    try:
        found = json.loads((folder / name).read_text())
        if not isinstance(found, dict):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: its {name} cannot be read: {error}") from error
    return read_content(found, name)


def _is_newer(key: str, found: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether a key is newer than the run, and has the value that means the old behaviour."""
    section, _, name = key.partition(".")
    old, new = found.get(section), config.get(section)
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return False
    return name in new and name not in old and is_default(key, new[name])


def _ends(config: Mapping[str, Any], key: str) -> list[list[str]]:
    """The last two parts of each path in a value such as ``coco:IMAGES:JSON``."""
    part, name = key.split(".")
    value = (config.get(part) or {}).get(name, "")
    return [path.split("/")[-2:] for path in str(value).split(":")]


def _group(job: Job) -> tuple[str, str, int]:
    return job.place["set"], job.place["detector"], job.place["budget"]


def _checked(job: Job) -> dict[str, Any] | None:
    summary = job.summary()
    if summary is None:
        return None
    wrong = differences(job, job.folder)
    if wrong:
        raise UserError(
            f"{job.folder} holds a run of other settings than the table's ({', '.join(wrong)}): "
            "remove it, set the table back, or use another --workdir"
        )
    return summary


def _require_one_teacher(
    jobs: Mapping[Any, Job], summaries: Mapping[Any, Mapping[str, Any] | None]
) -> None:
    first: dict[tuple[str, str], tuple[str, Path]] = {}
    for key, job in jobs.items():
        weights = (summaries[key] or {}).get("teacher_weights")  # missing: a plain or an older run
        if weights:
            known, where = first.setdefault(_group(job)[:2], (weights, job.folder))
            if weights != known:
                raise UserError(
                    f"{job.folder} was taught by other weights than {where}: two teachers make no "
                    "table; remove what the other one taught, or use another --workdir"
                )


def _run(job: Job, summary: Mapping[str, Any] | None, failed: Mapping[str, str]) -> dict[str, Any]:
    about = _about(job.folder)
    found: dict[str, Any] = {**job.place, "folder": str(job.folder), "state": "missing"}
    if summary is not None:
        found |= {
            "state": "done",
            "scores": summary["final"],
            "best": summary["best"],
            "best_step": summary["best_step"],
            "parameters": summary["parameters"],
            "seconds": summary["seconds"],
            "warnings": summary["warnings"],
            "commit": about.get("commit", "unknown"),
            "machine": about.get("machine"),
        }
    elif job.name in failed:
        found |= {"state": "failed", "error": failed[job.name]}
    return found


def _about(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / ABOUT_FILE).read_text())
    except (OSError, ValueError):
        return {}


def _teacher(plan: Plan, name: str, detector: str) -> tuple[dict[str, Any], _Scored | None]:
    """A teacher's results: those of its best checkpoint, from which the students learn."""
    job = plan.teachers[name, detector]
    folder = job.folder if isinstance(job, Job) else job
    own = plan.table.teacher.detector or detector
    row: dict[str, Any] = {
        "set": name,
        "detector": detector,  # the students'
        "teacher_detector": own,
        "folder": str(folder),
    }
    summary = _checked(job) if isinstance(job, Job) else read_json(folder, "summary.json")
    if summary is None:
        return {**row, "state": "missing"}, None
    row |= {
        "state": "done",
        "scores": summary["best"],
        "steps": summary["steps"],
        "best_step": summary["best_step"],
        "parameters": summary["parameters"],
        "seconds": summary["seconds"],
        "commit": _about(folder).get("commit", "unknown"),
    }
    if isinstance(job, Job) and summary["best_step"] == summary["steps"]:
        return row, _score(plan, job, summary["best"])
    most = job.config["eval"]["max_images"] if isinstance(job, Job) else None
    return row, _Scored(summary["best"], None, most)  # the detections are from another step


def _score(plan: Plan, job: Job, scores: Mapping[str, float]) -> _Scored:
    """Scores on each draw of the images, computed once and stored.

    Raises:
        UserError: The scores of the run's detections differ from those in its summary.
    """
    text = (job.folder / "detections.json").read_text()
    spec, data, counted = plan.val[job.place["set"]], job.config["data"], job.config["eval"]
    images, most = counted["max_images"], counted["max_detections"]
    asked = f"{spec} {DRAWS} {images} {most}"
    key = hashlib.sha256(f"{asked} {text}".encode()).hexdigest()
    path = plan.folder / "draws" / f"{job.name.replace('/', '-')}.npz"
    numbers = {name: scores[name] if scores[name] >= 0 else math.nan for name in METRICS}
    if path.is_file():
        with np.load(path) as kept:
            if str(kept["key"]) == key:
                return _Scored(numbers, {name: kept[name] for name in METRICS}, images)
    truth = _truth(spec, data["on_error"], data["exif"], data["depth"], images).coco
    draws = image_draws(len(truth["images"]), DRAWS)
    every = np.concatenate([np.ones_like(draws[:1]), draws])
    found = resampled_scores(truth, json.loads(text), every, most)
    for name in METRICS:
        off = abs(found[name][0] - numbers[name])
        if off > _TOLERANCE or np.isnan(found[name][0]) != np.isnan(numbers[name]):
            raise UserError(
                f"{job.folder}: detections.json scores {name} {found[name][0]:.6f} on "
                f"{spec}, summary.json says {numbers[name]:.6f}: they are not of one run, or of "
                "other data"
            )
    kept_draws = {name: found[name][1:] for name in METRICS}
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    np.savez(content, key=np.array(key), **kept_draws)
    write_bytes(path, content.getvalue())
    return _Scored(numbers, kept_draws, images)


_truth = functools.lru_cache(maxsize=8)(scored_images)


def _compare(
    group: tuple[str, str, int],
    arm: str,
    runs: Mapping[int, _Scored],
    reference: Mapping[int, _Scored],
    name: str,
) -> dict[str, Any]:
    """An arm alone, and against the reference over the seeds that both have."""
    row: dict[str, Any] = dict(zip(("set", "detector", "budget"), group, strict=True))
    row |= {"arm": arm, "reference": name, "seeds": sorted(runs)}
    row["scores"] = {
        metric: _spread([run.scores[metric] for run in runs.values()]) for metric in METRICS
    }
    both = sorted(set(runs) & set(reference))
    if arm == name or not both:
        return row
    row["paired_seeds"] = both
    row["difference"] = {}
    for metric in METRICS:
        first, second = ([side[seed] for seed in both] for side in (reference, runs))
        found = paired_difference(
            np.array([run.scores[metric] for run in first]),
            np.array([run.scores[metric] for run in second]),
            np.stack([run.draws[metric] for run in first if run.draws]),
            np.stack([run.draws[metric] for run in second if run.draws]),
        )
        row["difference"][metric] = {
            **dataclasses.asdict(found),
            "above_zero": found.above_zero,
        }
    return row


def _spread(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {"mean": math.nan, "sd": math.nan}
    sd = statistics.stdev(values) if len(values) > 1 else math.nan
    return {"mean": statistics.fmean(values), "sd": sd}


def _gap(group: tuple[str, str, int], teacher: _Scored, plain: Sequence[_Scored]) -> dict[str, Any]:
    """Teacher minus the reference's mean; the interval is only over the images."""
    row: dict[str, Any] = dict(zip(("set", "detector", "budget"), group, strict=True))
    for metric in METRICS:
        mean = statistics.fmean(run.scores[metric] for run in plain)
        low = high = math.nan
        if teacher.draws is not None:
            drawn = np.mean([run.draws[metric] for run in plain if run.draws], axis=0)
            low, high = interval(teacher.draws[metric] - drawn)
        row[metric] = {"mean": teacher.scores[metric] - mean, "low": low, "high": high}
    return row


def as_json(results: Any) -> Any:
    """Replaces numbers that are not finite by None."""
    if isinstance(results, Mapping):
        return {key: as_json(value) for key, value in results.items()}
    if isinstance(results, (list, tuple)):
        return [as_json(value) for value in results]
    if isinstance(results, float) and not math.isfinite(results):
        return None
    return results
