"""Compares finished runs with ground truth: scores, differences, intervals on common images.

Letters: S draws, I images.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from drkd_jax.data.sources.records import id_key
from drkd_jax.errors import faults_of
from drkd_jax.evaluation import coco_scores, number_ids
from drkd_jax.report import paired
from drkd_jax.report.runs import RunFiles, Truth, shared_images

DRAWS = 400
_SAME = 5e-4  # largest difference of a stored AP and the recomputed one


class Comparison(NamedTuple):
    """The results that need ground truth, beside the stored numbers.

    Attributes:
        scores: For each run, by the names in `paired.METRICS`.
        differences: For each run, minus the reference; 0 for the reference itself.
        class_ap: For each run, AP by class name, -1 if there is no object.
        objects: Number of objects by class name, without crowd regions.
        own: For each run, whether its stored numbers are for these images too.
        notes: Disagreements with the stored numbers.
    """

    scores: list[dict[str, paired.Interval]]
    differences: list[dict[str, paired.Interval]]
    class_ap: list[dict[str, float]]
    objects: dict[str, int]
    own: list[bool]
    notes: list[str]


def compare(
    runs: Sequence[RunFiles], reference: int, truth: Truth, draws: int = DRAWS
) -> Comparison:
    """Scores every run on the same bootstrap draws of the images.

    Args:
        runs: Each with detections.
        reference: Index of the run that the others are compared with.
        truth: The ground truth; detections of other classes, and on images of the source that
            are not in it, are left out.
        draws: S.

    Raises:
        UserError: There are detections on images that the ground truth does not have.
    """
    counts = paired.image_draws(len(truth.coco["images"]), draws)
    counts = np.concatenate([np.ones_like(counts[:1]), counts])  # the images as they are
    known = {id_key(row["id"]) for row in truth.coco["categories"]}
    beside = _beside(truth)
    samples: list[dict[str, Any]] = []
    class_ap, own, notes = [], [], []
    for run in runs:
        assert run.found is not None
        # Training stores detections of classes that only its own images have; no number counts
        # them.
        found = [
            row
            for row in run.found
            if id_key(row["category_id"]) in known and id_key(row["image_id"]) not in beside
        ]
        with faults_of(run.folder / "detections.json"):
            numbered = number_ids(truth.coco, found)
        most = run.max_detections
        samples.append(paired.resampled_scores(numbered.truth, numbered.detections, counts, most))
        class_ap.append(coco_scores(truth.coco, found, max_detections=most).class_ap)
        again = float(samples[-1]["AP"][0])
        agrees = math.isnan(again) or abs(again - run.scores["AP"]) <= _SAME
        on_these = run.images in (0, shared_images(runs))
        own.append(agrees and on_these)
        if on_these and not agrees:
            notes.append(
                f"{run.name}: its detections give AP {100 * again:.1f} on these images, its "
                f"eval.json says {100 * run.scores['AP']:.1f}. Only a part of them was scored, or "
                "they have changed since; intervals, classes and images are of all of them."
            )
    base = samples[reference]
    differences = [
        {name: paired.with_interval(sample[name] - base[name]) for name in paired.METRICS}
        for sample in samples
    ]
    scores = [
        {name: paired.with_interval(sample[name]) for name in paired.METRICS} for sample in samples
    ]
    return Comparison(scores, differences, class_ap, _objects(truth, class_ap[0]), own, notes)


def _beside(truth: Truth) -> set[Any]:
    """Images of the source that some, but not all, runs were scored on: by their `id_key`."""
    kept = {id_key(row["id"]) for row in truth.coco["images"]}
    if len(kept) == len(truth.source):
        return set()
    ids = {id_key(truth.source.meta(index).image_id) for index in range(len(truth.source))}
    return ids - kept


def _objects(truth: Truth, class_ap: dict[str, float]) -> dict[str, int]:
    """The number of objects of each class, with the names and the order of the scores."""
    numbers = Counter(row["category_id"] for row in truth.objects)
    categories = truth.coco["categories"]
    return {name: numbers[row["id"]] for name, row in zip(class_ap, categories, strict=True)}
