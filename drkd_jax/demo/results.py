"""Compares the demo's runs: ``results.json``, and its text and tables in ``results.md``.

Numbers are AP in points (0..100) in the text, 0..1 in the JSON.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import drkd_jax
from drkd_jax.data.config import cores
from drkd_jax.data.sources import open_source
from drkd_jax.demo import PLAIN, Job, Recipes
from drkd_jax.distill.config import distill_config
from drkd_jax.monitoring.last_word import last_word
from drkd_jax.report.curves import read_metrics
from drkd_jax.report.paired import Interval, ap_difference, t_reach
from drkd_jax.report.tables import points

# Column, the name that evaluation gives it.
COLUMNS = {n: n for n in ("AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L")} | {"AR": "AR100"}
MAX_SEEDS = 10
_LEAST_AP = 0.05  # under this a detector has learnt very little
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "pycocotools")


def compare(
    recipes: Recipes,
    jobs: Sequence[Job],
    summaries: Sequence[Mapping[str, Any]],
    command: str,
    resamples: int,
) -> dict[str, Any]:
    """Everything in ``results.json`` except the figures and the total time.

    Args:
        recipes: The three configs.
        jobs: All runs, finished, the teacher first.
        summaries: The return value of each run's training.
        command: How the program was called.
        resamples: Number of bootstrap draws of the validation images, for the intervals.
    """
    data = recipes.student["data"]
    val = open_source(data["val"])
    counts, trained = val.describe(), open_source(data["train"]).describe()
    found = [json.loads((job.folder / "detections.json").read_text()) for job in jobs]
    truth = val.coco_ground_truth()

    def gap(first: int, second: int) -> Interval:
        return ap_difference(truth, found[first], found[second], resamples=resamples)

    def entry(gap: Interval) -> dict[str, float]:
        drawn = {"resamples": resamples, "images": len(truth["images"])}
        return {"difference": gap.value, "low": gap.low, "high": gap.high, **drawn}

    plain = [i for i, job in enumerate(jobs) if job.kind == PLAIN]
    distilled = plain[0] + 1
    word = last_word(
        _train_lines(jobs[distilled].folder),
        tuple(distill_config(jobs[distilled].config["distill"]).terms),
        student_ap=float(summaries[plain[0]]["final"]["AP"]),
        teacher_ap=float(summaries[0]["final"]["AP"]),
    )
    teacher_gap, gains = gap(plain[0], 0), [gap(i, i + 1) for i in plain]
    plain_ap = [float(summaries[i]["final"]["AP"]) for i in plain]
    runs = [
        {
            "name": job.name,
            "folder": job.folder.name,
            "seed": job.config["seed"],
            "scores": summary["final"],
            "parameters": summary["parameters"]["student"],
            "distiller_parameters": summary["parameters"]["distiller"],
            "steps": summary["steps"],
            "best_step": summary["best_step"],
            "train_seconds": summary["seconds"],
            "seconds": summary["stage_seconds"],
            "warnings": summary["warnings"],
        }
        for job, summary in zip(jobs, summaries, strict=True)
    ]
    return {
        "command": command,
        "detector": recipes.student["student"]["detector"],
        "data": {
            "train": data["train"],
            "val": data["val"],
            "train_images": trained["images"],
            "train_boxes": trained["boxes"],
            "val_images": counts["images"],
            "val_boxes": counts["boxes"],
        },
        "teacher": summaries[0]["card"],
        "runs": runs,
        "teacher_minus_plain": entry(teacher_gap),
        "drkd_minus_plain": [entry(gain) for gain in gains],
        "verdict": verdict(teacher_gap, gains, plain_ap, counts["images"]),
        "last_word": {"text": word.text, "numbers": word.numbers},
        "machine": _machine(),
        "versions": _versions(),
    }


def _train_lines(folder: Path) -> list[dict[str, Any]]:
    lines = read_metrics(folder / "metrics.jsonl")
    return [line for line in lines if any(key.startswith("share/") for key in line)]


def scores_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """One row per run: the scores in points, parameters, steps and seconds.

    Args:
        runs: Each with ``name``, ``scores`` (0..1, by COCO's names), ``parameters``, ``steps``,
            ``train_seconds`` (None: it was trained beforehand) and ``seconds`` (with start,
            compilation and evaluations).

    Returns:
        A Markdown table, with "-" if the validation images have no object of that size.
    """
    head = ["", *COLUMNS, "parameters", "steps", "training", "in all"]
    rows = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for run in runs:
        scores = [points(run["scores"].get(key)) for key in COLUMNS.values()]
        size = f"{run['parameters'] / 1e6:.2f} M"
        trained = run["train_seconds"]
        times = ["-" if trained is None else f"{trained:.0f} s", f"{run['seconds']:.0f} s"]
        rows.append([run["name"], *scores, size, str(run["steps"]), *times])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def verdict(
    teacher_gap: Interval, gains: Sequence[Interval], plain: Sequence[float], images: int
) -> list[str]:
    """What can be concluded from the runs, and what cannot.

    Args:
        teacher_gap: AP of the teacher minus that of the plain student of the first seed.
        gains: AP of the DRKD student minus that of the plain student, one per training seed.
        plain: AP of the plain student, one per training seed.
        images: The number of images they were measured on.

    Returns:
        Texts, one per paragraph.
    """
    words = [_teacher_words(teacher_gap, images), *_gain_words(gains, plain, images)]
    distilled = [ap + gain.value for ap, gain in zip(plain, gains, strict=True)]
    best = max(plain[0] + teacher_gap.value, *plain, *distilled)
    if best < _LEAST_AP:
        words.insert(
            0,
            f"**No run got beyond {points(best)} AP: they have hardly learned to detect, and the "
            "comparison says nothing about either method.**",
        )
    return words


def _teacher_words(gap: Interval, images: int) -> str:
    lead = f"{_signed(gap.value)} AP ({_range(gap)})"
    if gap.value <= 0:
        return (
            f"**The teacher is no better than the plain student**: {lead}. It has nothing to teach "
            "here, and a gain below, if there is one, says nothing for the method."
        )
    if not gap.settled:
        return (
            f"**The teacher is hardly better than the plain student**: {lead}, within what the "
            f"choice of the {images} validation images explains. There is little to teach."
        )
    return f"The teacher is better than the plain student by {lead}: it has something to teach."


def _gain_words(gains: Sequence[Interval], plain: Sequence[float], images: int) -> list[str]:
    if len(gains) == 1:
        gain = gains[0]
        change = f"DRKD changes the student's AP by {_signed(gain.value)} ({_range(gain)})"
        if not gain.settled:
            first = (
                f"{change}: **within what the choice of the {images} validation images "
                "alone explains. This run shows neither a gain nor a loss.**"
            )
        else:
            word = "gain" if gain.value > 0 else "loss"
            first = (
                f"{change}: a {word} larger than the choice of the {images} validation "
                "images explains."
            )
        return [
            first,
            "The interval comes from drawing the validation images again; another training seed "
            "changes AP too, and **one seed cannot show how much, so no claim of a gain rests on "
            "this run**. `--seeds=3` trains more pairs of students and measures it.",
        ]
    values = np.array([gain.value for gain in gains])
    mean, half = float(values.mean()), t_reach(values)
    listed = ", ".join(_signed(v) for v in values)
    head = (
        f"Over {len(values)} training seeds DRKD changes the student's AP by {_signed(mean)} on "
        f"average ({listed}; 95 % interval of the mean {_signed(mean - half)} to "
        f"{_signed(mean + half)}, Student's t)"
    )
    if abs(mean) <= half:
        first = f"{head}: **within what a seed changes. No gain and no loss is shown.**"
    else:
        first = f"{head}: a {'gain' if mean > 0 else 'loss'} larger than what a seed changes."
    return [
        first,
        f"From seed to seed the plain student's AP alone ranges over "
        f"{100 * (max(plain) - min(plain)):.1f} points. The teacher is one and the same for every "
        "seed, and so are the training and validation images.",
    ]


def results_markdown(results: Mapping[str, Any]) -> str:
    """The text of ``results.md``.

    Args:
        results: The content of ``results.json``.
    """
    data, versions, teacher = results["data"], results["versions"], results["teacher"]
    lines = [
        f"# DRKD demo: {results['detector']} on {data['val'].partition(':')[0]}",
        "",
        "A teacher, a plain student and a student distilled from the teacher (DRKD): the two "
        "students are the same network, from the same seed, over the same steps and images.",
        "",
        f"**Few labels**: the students learn from {data['train_images']} labelled images "
        f"(`{data['train']}`, {data['train_boxes']} objects); the teacher learnt from "
        f"`{teacher['train']}`.",
        "",
        scores_table(results["runs"]),
        "",
        "COCO numbers in points (AR: 100 detections per image), of the last step's weights, on "
        f"`{data['val']}` ({data['val_images']} images, {data['val_boxes']} objects). "
        "Parameters are the detector's: distillation adds none to what is kept. *in all* has the "
        "start and the evaluations besides the training.",
        "",
        f"The teacher is `{teacher['file']}` ({teacher['bytes'] / 1e6:.1f} MB, half precision), "
        f"made on {teacher['date']} by `{teacher['command']}` with seed {teacher['seed']}; before "
        f"it was rounded to half precision it had {points(teacher['ap_single_precision'])} AP on "
        f"`{teacher['val']}`. Its row is measured in this run.",
        "",
        "## What this shows",
        "",
        "\n\n".join(results["verdict"]),
        "",
        results["last_word"]["text"],
        "",
        "## Figures",
        "",
    ]
    for name, caption in results["figures"].items():
        lines += [f"![{caption}]({name})", "", f"*{caption}*", ""]
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines += [
        "## How it was made",
        "",
        f"- command: `{results['command']}`",
        f"- seconds in all: {results['seconds']:.0f}, with compilation, on {results['machine']}",
        f"- versions: {listed}",
        "- every run's config, metrics and checkpoints lie in its own folder beside this file; "
        "the same numbers as data: `results.json`",
        "",
    ]
    return "\n".join(lines)


def _signed(value: float) -> str:
    return points(value, signed=True)


def _range(interval: Interval) -> str:
    return f"95 % interval over the images {_signed(interval.low)} to {_signed(interval.high)}"


def _machine() -> str:
    """Devices and CPU cores, as text."""
    device = jax.devices()[0]
    return f"{jax.device_count()} x {device.device_kind} ({device.platform}), {cores()} CPU cores"


def _versions() -> dict[str, str]:
    """The versions of Python, this package and its numerical libraries."""
    return {
        "drkd_jax": drkd_jax.__version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
    }
