"""Judges a finished distillation from its log.

It answers three questions from numbers: did the teacher have something to teach, did the terms
convey it, and did the student learn it? If an answer is no, it suggests what to try next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from drkd_jax.monitoring.collapse import FULL_ROWS, LEAST_SHARE, UNTRAINED_SHARE, untrained_share

LEAST_GAP = 0.03  # AP difference of teacher and student under which there is little to teach
LEAST_FALL = 0.05  # least relative fall of a term's loss from its first to its last windows
_WINDOWS = 3  # log windows averaged for the start and for the end; at most half of all


class LastWord(NamedTuple):
    """The answers: `text` for people, `numbers` for programs."""

    text: str
    numbers: dict[str, float]


def last_word(
    lines: Sequence[Mapping[str, Any]],
    terms: Sequence[str],
    *,
    student_ap: float | None = None,
    teacher_ap: float | None = None,
    untrained: float = UNTRAINED_SHARE,
    asked: bool = False,
) -> LastWord:
    """Judges a distilled run by its train lines.

    Args:
        lines: the run's log windows in order, as in `metrics.jsonl`: "distill/TERM" (unweighted
            loss), "share/TERM" (of the total, weighted) and the diagnostics "diag/TERM/LEVEL/...".
        terms: names of the computed terms.
        student_ap: AP (0..1) of a plain student trained equally long, if known, else of the
            distilled one.
        teacher_ap: AP (0..1) of the teacher on the same images, or None. Both are -1 if there is
            nothing to find on the images.
        untrained: see `CollapseMonitor`.
        asked: whether scoring the teacher was requested but impossible because of its classes.

    Returns:
        One paragraph, and the numbers in it.
    """
    windows = min(_WINDOWS, len(lines) // 2)  # start and end do not overlap
    first, last = lines[:windows], lines[len(lines) - windows :]
    numbers: dict[str, float] = {}
    parts, advice = [], []

    if teacher_ap is None or student_ap is None:
        why = ": its classes are not those of the data" if asked else " (teacher.evaluate=True)"
        parts.append(f"What the teacher itself reaches was not measured{why}")
    elif min(teacher_ap, student_ap) < 0:
        parts.append("What the teacher reaches is not known: data.val has nothing to find")
    else:
        gap = numbers["teacher_gap"] = teacher_ap - student_ap
        has = "had" if gap >= LEAST_GAP else "had little"
        parts.append(
            f"The teacher {has} to teach ({100 * teacher_ap:.1f} AP, {100 * gap:+.1f} against the "
            "student)"
        )
        if gap < LEAST_GAP:
            advice.append("a better teacher, a smaller student or fewer labelled images")

    carried, empty = [], []
    for term in terms:
        share = numbers[f"share/{term}"] = _mean(lines, f"share/{term}")
        words = f"{term} {share:.1%} of the loss"
        rows = _mean_of(lines, term, "teacher_entropy", skip=0.0)
        if rows is not None:
            numbers[f"row_entropy/{term}"] = rows
            words += f", its rows at {rows:.2f} of a uniform row's entropy"
            if not FULL_ROWS[0] <= rows <= FULL_ROWS[1]:
                empty.append(term)
                change = "lower" if rows > FULL_ROWS[1] else "raise"
                advice.append(f"{change} distill.{term}.temperature")
        spread = _mean_of(lines, term, "teacher_variance")
        if spread is not None:
            random = numbers[f"untrained_share/{term}"] = untrained_share(spread)
            if random > untrained:
                empty.append(term)
                words += f", {random:.0%} of its target from an untrained branch"
                advice.append(f"a smaller distill.{term}.teacher_scale")
        if share < LEAST_SHARE:
            empty.append(term)
            advice.append(f"a larger distill.{term}.weight")
        carried.append(words)
    how = "carried it" if not empty else "hardly carried it"
    parts.append(f"the terms {how}: {'; '.join(carried)}")

    got, missed = [], []
    for term in terms if windows else ():
        start, end = _mean(first, f"distill/{term}"), _mean(last, f"distill/{term}")
        fall = numbers[f"fall/{term}"] = 1 - end / start if start else 0.0
        got.append(f"{term} {f'fell by {fall:.0%}' if fall >= 0 else 'rose'}")
        if fall < LEAST_FALL:
            missed.append(term)
    if missed:
        advice.append("more steps, or weights that rise later (distill.warmup_steps)")
    all_or_some = "did not get it" if len(missed) == len(terms) else "got a part of it"
    if windows:
        parts.append(f"the student {'got it' if not missed else all_or_some}: {', '.join(got)}")
    else:
        parts.append("whether the student got it shows from two log lines on (train.log_every)")
    text = "; ".join(parts) + "."
    if advice:
        text += f" To try next: {'; '.join(dict.fromkeys(advice))}."
    return LastWord(text, numbers)


def _mean(lines: Sequence[Mapping[str, Any]], name: str) -> float:
    values = [line[name] for line in lines if line.get(name) is not None]
    return float(np.mean(values)) if values else 0.0


def _mean_of(
    lines: Sequence[Mapping[str, Any]], term: str, what: str, skip: float | None = None
) -> float | None:
    """Mean of a diagnostic over windows and levels; None if there is none."""
    values = [
        value
        for line in lines
        for name, value in line.items()
        if name.startswith(f"diag/{term}/") and name.endswith(f"/{what}")
        if value is not None and value != skip
    ]
    return float(np.mean(values)) if values else None
