"""The files that the two sides of `crosscheck` exchange: cases.json, cases.npz, answers.npz."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crosscheck.case import Case


def write_cases(cases: Sequence[Case], folder: Path) -> None:
    """Writes cases.json and cases.npz for the reference."""
    described = [
        {
            "name": case.name,
            "component": case.component,
            "settings": case.settings,
            "forward": case.forward,
            "gradient": case.gradient,
        }
        for case in cases
    ]
    (folder / "cases.json").write_text(json.dumps(described, indent=1))
    arrays: dict[str, Any] = {
        f"{case.name}|{kind}|{name}": value
        for case in cases
        for kind, values in case.arrays.items()
        for name, value in values.items()
    }
    np.savez_compressed(folder / "cases.npz", **arrays)


def read_cases(folder: Path) -> list[Case]:
    """Reads the cases that `write_cases` wrote."""
    arrays: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    with np.load(folder / "cases.npz") as file:
        for key in file.files:
            case, kind, name = key.split("|")
            arrays.setdefault(case, {}).setdefault(kind, {})[name] = file[key]
    described = json.loads((folder / "cases.json").read_text())
    return [Case(arrays=arrays.get(entry["name"], {}), **entry) for entry in described]


def read_answers(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Reads the reference's answers, by case and name."""
    answers: dict[str, dict[str, np.ndarray]] = {}
    with np.load(folder / "answers.npz") as file:
        for key in file.files:
            case, name = key.split("|", 1)
            answers.setdefault(case, {})[name] = file[key]
    return answers
