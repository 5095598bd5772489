"""The demo's result in words and tables: ``results.md`` from the dict that ``results.json`` holds.

Nothing is measured here. Numbers are AP in points (0..100) in the text, 0..1 in the JSON.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from drkd_jax.report.paired import Interval, t_reach

# Column, the name that evaluation gives it.
COLUMNS = (
    ("AP", "AP"),
    ("AP50", "AP50"),
    ("AP75", "AP75"),
    ("AP_S", "AP_S"),
    ("AP_M", "AP_M"),
    ("AP_L", "AP_L"),
    ("AR", "AR100"),
)
MAX_SEEDS = 10
_LEAST_AP = 0.05  # under this a detector is at its beginning


def scores_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """One row a run: the scores in points, parameters, steps and seconds.

    Args:
        runs: Each with ``name``, ``scores`` (0..1, by COCO's names), ``parameters``, ``steps``,
            ``train_seconds`` (None: it was trained beforehand) and ``seconds`` (with start,
            compilation and evaluations).

    Returns:
        A Markdown table. "-" stands where the validation pictures have no object of that size.
    """
    head = ["", *(c for c, _ in COLUMNS), "parameters", "steps", "training", "in all"]
    rows = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for run in runs:
        scores = [points(run["scores"].get(key)) for _, key in COLUMNS]
        size = f"{run['parameters'] / 1e6:.2f} M"
        trained = run["train_seconds"]
        times = ["-" if trained is None else f"{trained:.0f} s", f"{run['seconds']:.0f} s"]
        rows.append([run["name"], *scores, size, str(run["steps"]), *times])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def points(value: float | None, signed: bool = False) -> str:
    """A score in points with one decimal; "-" for pycocotools' -1 and for NaN."""
    if value is None or not math.isfinite(value) or (value < 0 and not signed):
        return "-"
    return f"{100 * value:+.1f}" if signed else f"{100 * value:.1f}"


def verdict(teacher_gap: Interval, gains: Sequence[Interval], plain: Sequence[float]) -> list[str]:
    """What may be said of the run, and what may not.

    Args:
        teacher_gap: AP of the teacher minus that of the plain student of the first seed.
        gains: AP of the DRKD student minus that of the plain student, one a training seed.
        plain: AP of the plain student, one a training seed.

    Returns:
        Sentences, one a paragraph.
    """
    words = [_teacher_words(teacher_gap), *_gain_words(gains, plain)]
    best = max(plain[0] + teacher_gap.difference, *plain)
    if best < _LEAST_AP:
        words.insert(
            0,
            f"**No run got beyond {points(best)} AP: they have hardly learned to detect, and the "
            "comparison says nothing of either method.**",
        )
    return words


def _teacher_words(gap: Interval) -> str:
    lead = f"{_points(gap.difference)} AP ({_range(gap)})"
    if gap.difference <= 0:
        return (
            f"**The teacher is no better than the plain student**: {lead}. It has nothing to teach "
            "here, and a gain below, if there is one, says nothing for the method."
        )
    if not gap.settled:
        return (
            f"**The teacher is hardly better than the plain student**: {lead}, within what the "
            f"choice of the {gap.pictures} validation pictures moves. There is little to teach."
        )
    return f"The teacher is better than the plain student by {lead}: it has something to teach."


def _gain_words(gains: Sequence[Interval], plain: Sequence[float]) -> list[str]:
    if len(gains) == 1:
        gain = gains[0]
        change = f"DRKD changes the student's AP by {_points(gain.difference)} ({_range(gain)})"
        if not gain.settled:
            first = (
                f"{change}: **within what the choice of the {gain.pictures} validation pictures "
                "alone moves. This run shows neither a gain nor a loss.**"
            )
        else:
            word = "gain" if gain.difference > 0 else "loss"
            first = (
                f"{change}: a {word} larger than the choice of the {gain.pictures} validation "
                "pictures moves."
            )
        return [
            first,
            "The interval comes from drawing the validation pictures again; another training seed "
            "moves AP too, and **one seed cannot tell how much, so no claim of a gain rests on "
            "this run**. `--seeds=3` trains more pairs of students and measures it.",
        ]
    values = np.array([gain.difference for gain in gains])
    mean, half = float(values.mean()), t_reach(values)
    listed = ", ".join(_points(v) for v in values)
    head = (
        f"Over {len(values)} training seeds DRKD changes the student's AP by {_points(mean)} on "
        f"average ({listed}; 95 % interval of the mean {_points(mean - half)} to "
        f"{_points(mean + half)}, Student's t)"
    )
    if abs(mean) <= half:
        first = f"{head}: **within what a seed moves. No gain and no loss is shown.**"
    else:
        first = f"{head}: a {'gain' if mean > 0 else 'loss'} larger than what a seed moves."
    return [
        first,
        f"From seed to seed the plain student's AP alone ranges over "
        f"{100 * (max(plain) - min(plain)):.1f} points. The teacher is one and the same for every "
        "seed, and so are the training and validation pictures.",
    ]


def results_markdown(results: Mapping[str, Any]) -> str:
    """The whole of ``results.md``.

    Args:
        results: What the demo writes to ``results.json``.
    """
    data, versions, teacher = results["data"], results["versions"], results["teacher"]
    lines = [
        f"# DRKD demo: {results['detector']} on {data['val'].partition(':')[0]}",
        "",
        "A teacher, a plain student and a student distilled from the teacher (DRKD): the two "
        "students are the same network, from the same seed, over the same steps and pictures.",
        "",
        f"**Few labels**: the students learn from {data['train_pictures']} labelled pictures "
        f"(`{data['train']}`, {data['train_boxes']} objects); the teacher learnt from "
        f"`{teacher['train']}`.",
        "",
        scores_table(results["runs"]),
        "",
        "COCO numbers in points (AR: 100 detections a picture), of the last step's weights, on "
        f"`{data['val']}` ({data['val_pictures']} pictures, {data['val_boxes']} objects). "
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
        "## Pictures",
        "",
    ]
    for name, caption in results["pictures"].items():
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


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


def _range(interval: Interval) -> str:
    return f"95 % interval over the pictures {_points(interval.low)} to {_points(interval.high)}"
