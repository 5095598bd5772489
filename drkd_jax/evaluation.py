"""Detections to COCO's numbers.

pycocotools is the measure. faster-coco-eval does the same sums in C++, gives the same numbers to
rounding (tests/test_evaluation.py compares them, benchmarks/evaluation.py times them), and is what
runs by default.

Letters: B pictures, N detections.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable
from typing import Any, NamedTuple

import faster_coco_eval
import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from drkd_jax.data.records import Id, Source
from drkd_jax.errors import UserError
from drkd_jax.types import Batch, Detections

NUMBERS = (
    "AP",
    "AP50",
    "AP75",
    "AP_S",
    "AP_M",
    "AP_L",
    "AR1",
    "AR10",
    "AR100",
    "AR_S",
    "AR_M",
    "AR_L",
)

# By name: the class that holds annotations, and the one that scores.
EVALUATORS: dict[str, tuple[Any, Any]] = {
    "faster": (faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster),
    "pycocotools": (COCO, COCOeval),
}


class CocoScores(NamedTuple):
    """The 12 numbers, and AP for each class by its name (-1 where there is no ground truth)."""

    numbers: dict[str, float]
    class_ap: dict[str, float]


def coco_numbers(
    ground_truth: dict[str, Any],
    detections: list[dict[str, Any]],
    image_ids: Iterable[Id] | None = None,
    evaluator: str = "faster",
) -> dict[str, float]:
    """COCO's 12 numbers for boxes, between 0 and 1; -1 where there is nothing to find.

    Args:
        ground_truth: COCO's instances dict (``Source.coco_ground_truth()``).
        detections: ``image_id``, ``category_id``, ``bbox`` (xywh) and ``score`` each.
        image_ids: score these pictures only; all of the ground truth by default.
        evaluator: "faster" (faster-coco-eval) or "pycocotools"; the same numbers.

    Returns:
        AP AP50 AP75 AP_S AP_M AP_L AR1 AR10 AR100 AR_S AR_M AR_L.

    Raises:
        UserError: a detection is of a picture that the ground truth does not know.
    """
    return coco_scores(ground_truth, detections, image_ids, evaluator).numbers


def coco_scores(
    ground_truth: dict[str, Any],
    detections: list[dict[str, Any]],
    image_ids: Iterable[Id] | None = None,
    evaluator: str = "faster",
) -> CocoScores:
    """As ``coco_numbers``, with AP for each class.

    Raises:
        UserError: a detection is of a picture that the ground truth does not know.
    """
    known = {image["id"] for image in ground_truth["images"]}
    strange = {d["image_id"] for d in detections} - known
    if strange:
        raise UserError(
            f"{len(strange)} pictures of the detections are not in the ground truth, "
            f"among them id {min(strange)}"
        )
    names = {c["id"]: c["name"] for c in ground_truth["categories"]}
    annotations_class, scorer_class = EVALUATORS[evaluator]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = _coco(annotations_class, ground_truth, ground_truth["annotations"])
        results = ({**d, "area": d["bbox"][2] * d["bbox"][3], "iscrowd": 0} for d in detections)
        scorer = scorer_class(truth, _coco(annotations_class, ground_truth, results), "bbox")
        if image_ids is not None:
            scorer.params.imgIds = sorted(set(image_ids) & known)
        if not scorer.params.imgIds or not names:
            return CocoScores(dict.fromkeys(NUMBERS, -1.0), dict.fromkeys(names.values(), -1.0))
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    numbers = {name: float(value) for name, value in zip(NUMBERS, scorer.stats[:12], strict=True)}
    # thresholds, recalls, classes, areas (0: all), most detections (-1: 100)
    precision = scorer.eval["precision"][:, :, :, 0, -1]
    class_ap = {}
    for at, category_id in enumerate(scorer.params.catIds):
        counted = precision[:, :, at][precision[:, :, at] > -1]
        class_ap[names[category_id]] = float(counted.mean()) if counted.size else -1.0
    return CocoScores(numbers, class_ap)


def to_coco(detections: Detections, batch: Batch, source: Source) -> list[dict[str, Any]]:
    """Detections of a batch in COCO's form: source pixels, original picture and category ids.

    Args:
        detections: boxes on the canvas; of the mirrored picture where ``batch.flip`` is set.
        batch: the batch they were found in (filling pictures give nothing).
        source: where the batch came from.

    Returns:
        Dicts of ``image_id``, ``category_id``, ``bbox`` (x, y, width, height) and ``score``.
    """
    boxes, scores, labels, valid = (np.asarray(part) for part in detections)
    index, scale, sizes, flip = (
        np.asarray(part) for part in (batch.index, batch.scale, batch.sizes, batch.flip)
    )
    results = []
    for row in np.flatnonzero(np.asarray(batch.picture_valid)):
        image_id = source.meta(int(index[row])).image_id
        kept = boxes[row][valid[row]].astype(np.float64)
        if flip[row]:
            kept[:, [0, 2]] = sizes[row, 1] - kept[:, [2, 0]]
        kept /= np.tile(scale[row], 2)
        kept[:, 2:] -= kept[:, :2]
        for box, score, label in zip(
            kept, scores[row][valid[row]], labels[row][valid[row]], strict=True
        ):
            results.append(
                {
                    "image_id": image_id,
                    "category_id": source.categories[int(label)].id,
                    "bbox": box.tolist(),
                    "score": float(score),
                }
            )
    return results


def _coco(
    annotations_class: Any, ground_truth: dict[str, Any], annotations: Iterable[dict[str, Any]]
) -> Any:
    coco = annotations_class()
    coco.dataset = {
        "images": ground_truth["images"],
        "categories": ground_truth["categories"],
        # Both evaluators write into what they are given, and take a match with annotation 0 for
        # no match: so copies, numbered from 1.
        "annotations": [{**row, "id": number} for number, row in enumerate(annotations, 1)],
    }
    coco.createIndex()
    return coco
