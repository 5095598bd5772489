"""Compares two answers to a case, and checks the tolerances."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from crosscheck.case import Case

GRADIENT_FLOOR = 1e-3  # share of the case's largest gradient; some gradients are exactly 0


@dataclasses.dataclass(frozen=True)
class Row:
    """One compared tensor."""

    component: str
    tensor: str
    absolute: float
    relative: float
    tolerance: float

    @property
    def passes(self) -> bool:
        """Whether the relative error is within the tolerance; NaN is not."""
        return self.relative <= self.tolerance


def compare(
    case: Case, ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]
) -> list[Row]:
    """Rows of one case.

    Errors are relative to the norm of the reference; for gradients this norm has a floor.

    Args:
        case: the case.
        ours: "out|NAME", "dx|NAME" and "dp|NAME".
        theirs: the same names from the reference.
    """
    norms = {name: float(np.linalg.norm(value)) for name, value in theirs.items()}
    largest = max((norm for name, norm in norms.items() if name[0] == "d"), default=0.0)
    rows = []
    for name, value in theirs.items():
        off = np.asarray(ours[name], np.float64) - value
        forward = name.startswith("out|")
        size = norms[name] if forward else max(norms[name], GRADIENT_FLOOR * largest)
        distance = float(np.linalg.norm(off))
        rows.append(
            Row(
                case.name,
                name.replace("|", " ").replace("out ", ""),
                float(np.abs(off).max(initial=0)),
                distance / size if size else distance,
                case.forward if forward else case.gradient,
            )
        )
    missing = set(ours) - set(theirs)
    assert not missing, f"the reference does not answer {missing} of {case.name}"
    return rows
