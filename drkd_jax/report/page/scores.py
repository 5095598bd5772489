"""Numbers of the page that need ground truth: intervals over the pictures, and AP by class.

Letters: S draws, I pictures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from drkd_jax.errors import UserError
from drkd_jax.evaluation import coco_scores, number_ids
from drkd_jax.report import paired
from drkd_jax.report.page.runs import RunFiles, Truth

DRAWS = 400
_SAME = 5e-4  # of an AP that was read and one that was computed again


class Spread(NamedTuple):
    """A value and the middle 95 % of its draws, 0..1."""

    value: float
    low: float
    high: float

    @property
    def settled(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0.0 or self.high < 0.0


class Comparison(NamedTuple):
    """What ground truth adds to the numbers that were read.

    Attributes:
        scores: For each run, by the names in `paired.METRICS`.
        differences: For each run, minus the reference; of the reference itself 0.
        class_ap: For each run, AP by class name, -1 where there is no object.
        objects: By class name, crowd regions left out.
        notes: What does not agree with what was read.
    """

    scores: list[dict[str, Spread]]
    differences: list[dict[str, Spread]]
    class_ap: list[dict[str, float]]
    objects: dict[str, int]
    notes: list[str]


def compare(
    runs: Sequence[RunFiles], reference: int, truth: Truth, draws: int = DRAWS
) -> Comparison:
    """Scores every run on the same draws of the pictures.

    Args:
        runs: Each with detections.
        reference: Position of the run that the others are compared with.
        truth: What was to be found.
        draws: S.

    Raises:
        UserError: Detections are of pictures or classes that the ground truth does not have.
    """
    counts = paired.picture_draws(len(truth.coco["images"]), draws)
    counts = np.concatenate([np.ones_like(counts[:1]), counts])  # the pictures as they are
    samples: list[dict[str, Any]] = []
    class_ap, notes = [], []
    for run in runs:
        assert run.found is not None
        try:
            numbered = number_ids(truth.coco, run.found)
        except UserError as error:
            raise UserError(f"{run.folder / 'detections.json'}: {error}") from error
        most = run.max_detections
        samples.append(paired.resampled_scores(numbered.truth, numbered.detections, counts, most))
        class_ap.append(coco_scores(truth.coco, run.found, max_detections=most).class_ap)
        again = float(samples[-1]["AP"][0])
        if abs(again - run.scores["AP"]) > _SAME and not math.isnan(again):
            notes.append(
                f"{run.name}: its detections give AP {100 * again:.1f} on these pictures, its "
                f"eval.json says {100 * run.scores['AP']:.1f}. Only a part of them was scored, or "
                "they have changed since; intervals, classes and pictures are of all of them."
            )
    base = samples[reference]
    differences = [
        {name: _spread(sample[name] - base[name]) for name in paired.METRICS} for sample in samples
    ]
    scores = [{name: _spread(sample[name]) for name in paired.METRICS} for sample in samples]
    return Comparison(scores, differences, class_ap, _objects(truth, class_ap[0]), notes)


def _spread(values: np.ndarray) -> Spread:
    return Spread(float(values[0]), *paired.interval(values[1:]))


def _objects(truth: Truth, class_ap: dict[str, float]) -> dict[str, int]:
    """How many objects each class has; names as the scores have them, in their order."""
    ids = [row["id"] for row in truth.coco["categories"]]
    rows = [row for row in truth.coco["annotations"] if not row.get("iscrowd")]
    return {
        name: sum(row["category_id"] == number for row in rows)
        for number, name in zip(ids, class_ap, strict=True)
    }
