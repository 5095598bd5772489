"""A small version of the main task: a teacher, a plain student, a DRKD student, and a comparison.

`run` trains, `results` compares, `figures` draws. Only the command line reads this package.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

TEACHER, PLAIN, DISTILLED = KINDS = ("teacher", "plain student", "DRKD student")


class Recipes(NamedTuple):
    """The configs of the three runs, as plain nested dicts.

    ``teacher`` is used if the teacher is trained. ``distilled`` is ``student`` with a teacher and a
    distillation added; the demo fills in the teacher's checkpoint.
    """

    teacher: dict[str, Any]
    student: dict[str, Any]
    distilled: dict[str, Any]


class Job(NamedTuple):
    """One run of the demo."""

    kind: str  # one of KINDS
    name: str  # as in the tables
    folder: Path
    config: dict[str, Any]
