"""Computes COCO's numbers from detections.

pycocotools is the reference. faster-coco-eval computes the same in C++, with equal results up to
rounding (tests/test_evaluation.py compares them, benchmarks/evaluation.py times them), and is the
default.

Letters: B images, N detections.
"""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import faster_coco_eval
import numpy as np
from jaxtyping import Bool, Float64, Int
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from drkd_jax.data.sources.records import Id, Source, id_key
from drkd_jax.errors import UserError
from drkd_jax.types import Batch, Detections
from drkd_jax.words import counted

_LARGEST = 1e10  # square pixels: COCO's rule ignores objects with a larger stated area
COCO_MAX = 100  # detections per class and image that COCO counts


def number_names(max_detections: int = COCO_MAX) -> tuple[str, ...]:
    """Names of the 12 numbers; the third recall's name has its number of detections."""
    precisions = ("AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L")
    return (*precisions, "AR1", "AR10", f"AR{max_detections}", "AR_S", "AR_M", "AR_L")


# By name: the class for annotations and the class for scoring.
EVALUATORS: dict[str, tuple[Any, Any]] = {
    "faster": (faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster),
    "pycocotools": (COCO, COCOeval),
}


class CocoScores(NamedTuple):
    """The 12 numbers, and AP for each class by its name (-1 if it has no ground truth)."""

    numbers: dict[str, float]
    class_ap: dict[str, float]


class Numbered(NamedTuple):
    """Ground truth and detections with ids replaced by numbers from 1.

    Attributes:
        truth: a copy of the instances dict with the new ids.
        detections: copies with the new ids, themselves numbered too.
        images: the number of each image id, by its `id_key`.
        categories: the number of each category id, likewise.
    """

    truth: dict[str, Any]
    detections: list[dict[str, Any]]
    images: dict[Any, int]
    categories: dict[Any, int]


def number_ids(ground_truth: dict[str, Any], detections: Iterable[dict[str, Any]]) -> Numbered:
    """Numbers images, categories, annotations and detections from 1.

    Evaluators store ids as doubles or 64-bit integers and treat a match with annotation 0 as no
    match, but a file's ids may be hashes, negative, or strings. Images are numbered in the order
    of their ids, numbers before strings, which is the order of pycocotools: detections of earlier
    images rank higher if scores are equal.

    Args:
        ground_truth: COCO's instances dict; it is not changed.
        detections: in COCO's form, with the ids of the ground truth.

    Raises:
        UserError: an id occurs twice, or is not in the ground truth.
    """
    in_order = sorted(ground_truth["images"], key=_by_id)
    images = _numbers(in_order, "image")
    categories = _numbers(ground_truth["categories"], "category")

    def renumber(rows: Iterable[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
        numbered: list[dict[str, Any]] = []
        strange_images: dict[Any, None] = {}
        strange_categories: dict[Any, None] = {}
        for number, row in enumerate(rows, 1):
            image = images.get(id_key(row["image_id"]))
            category = categories.get(id_key(row["category_id"]))
            if image is None:
                strange_images[row["image_id"]] = None
            elif category is None:
                strange_categories[row["category_id"]] = None
            else:
                copy = {**row, "id": number, "image_id": image, "category_id": category}
                numbered.append(copy)
        for strange, what in ((strange_images, "images"), (strange_categories, "categories")):
            if strange:
                raise UserError(
                    f"{len(strange)} {what} of the {kind} are not in the ground truth, among them "
                    f"id {next(iter(strange))!r}"
                )
        return numbered

    truth = {
        "images": _renumbered(in_order),
        "categories": _renumbered(ground_truth["categories"]),
        "annotations": renumber(ground_truth["annotations"], "annotations"),
    }
    return Numbered(truth, renumber(detections, "detections"), images, categories)


def coco_numbers(
    ground_truth: dict[str, Any],
    detections: list[dict[str, Any]],
    image_ids: Iterable[Id] | None = None,
    evaluator: str = "faster",
    max_detections: int = COCO_MAX,
) -> dict[str, float]:
    """COCO's 12 numbers for boxes, between 0 and 1; -1 if there is nothing to find.

    Args:
        ground_truth: COCO's instances dict (``Source.coco_ground_truth()``).
        detections: ``image_id``, ``category_id``, ``bbox`` (xywh) and ``score`` each.
        image_ids: score only these images; all of the ground truth by default.
        evaluator: "faster" (faster-coco-eval) or "pycocotools"; the same numbers.
        max_detections: how many detections count per class and image, best first; more than 10.
            It holds for every number except AR1 and AR10.

    Returns:
        AP AP50 AP75 AP_S AP_M AP_L AR1 AR10 AR100 AR_S AR_M AR_L; with another ``max_detections``
        the third recall is named after it.

    Raises:
        UserError: a detection is of an image or class that the ground truth does not know.
    """
    return coco_scores(ground_truth, detections, image_ids, evaluator, max_detections).numbers


def coco_scores(
    ground_truth: dict[str, Any],
    detections: list[dict[str, Any]],
    image_ids: Iterable[Id] | None = None,
    evaluator: str = "faster",
    max_detections: int = COCO_MAX,
) -> CocoScores:
    """As ``coco_numbers``, with AP for each class.

    Raises:
        UserError: a detection is of an image or class that the ground truth does not know.

    Source: cocodataset/cocoapi, PythonAPI/pycocotools/cocoeval.py (``summarize``, which always
    assumes 100 detections; therefore the means are computed here).
    """
    numbered = number_ids(ground_truth, detections)
    names = class_names(ground_truth["categories"])
    number_of = number_names(max_detections)
    annotations_class, scorer_class = EVALUATORS[evaluator]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = indexed(annotations_class, numbered.truth, numbered.truth["annotations"])
        for found in numbered.detections:
            found |= {"area": found["bbox"][2] * found["bbox"][3], "iscrowd": 0}
        scorer = scorer_class(
            truth, indexed(annotations_class, numbered.truth, numbered.detections), "bbox"
        )
        scorer.params.maxDets = [1, 10, max_detections]
        if image_ids is not None:
            wanted = {numbered.images.get(id_key(image_id)) for image_id in image_ids}
            scorer.params.imgIds = sorted(number for number in wanted if number is not None)
        if not scorer.params.imgIds or not names:
            return CocoScores(dict.fromkeys(number_of, -1.0), dict.fromkeys(names, -1.0))
        scorer.evaluate()
        scorer.accumulate()
    # thresholds, recalls, classes, areas (all, small, medium, large), most detections
    precision, recall = scorer.eval["precision"], scorer.eval["recall"]
    at = {round(float(t), 2): row for row, t in enumerate(scorer.params.iouThrs)}
    values = [
        precision[..., 0, 2],
        precision[at[0.5], ..., 0, 2],
        precision[at[0.75], ..., 0, 2],
        *(precision[..., area, 2] for area in (1, 2, 3)),
        *(recall[..., 0, most] for most in (0, 1, 2)),
        *(recall[..., area, 2] for area in (1, 2, 3)),
    ]
    numbers = {name: _mean(value) for name, value in zip(number_of, values, strict=True)}
    class_ap = {name: _mean(precision[:, :, k, 0, 2]) for k, name in enumerate(names)}
    return CocoScores(numbers, class_ap)


def class_names(categories: Iterable[dict[str, Any]]) -> list[str]:
    """The classes' names in order, followed by the id if several have the same name."""
    rows = list(categories)
    count = Counter(row["name"] for row in rows)
    return [
        row["name"] if count[row["name"]] == 1 else f"{row['name']} (id {row['id']})"
        for row in rows
    ]


def why_nothing_to_find(
    ground_truth: dict[str, Any], image_ids: Iterable[Id] | None = None
) -> str | None:
    """Why every number is -1; None if there is something to find.

    Args:
        ground_truth: COCO's instances dict.
        image_ids: the images that are scored; all by default.
    """
    known = {image["id"] for image in ground_truth["images"]}
    scored = known if image_ids is None else known & set(image_ids)
    rows = [row for row in ground_truth["annotations"] if row["image_id"] in scored]
    single = [row for row in rows if not row.get("iscrowd")]
    if any(0 <= row["area"] <= _LARGEST for row in single):
        return None
    crowd = f"only crowd regions ({len(rows)})" if rows else "no annotation"
    if single:
        crowd = f"only annotations with an area under 0 or above {_LARGEST:g} ({len(single)})"
    return (
        f"there is nothing to find: {crowd} in {counted(len(scored), 'image')}, so every "
        "number is -1; score on images that have boxes"
    )


def to_coco(
    detections: Detections,
    batch: Batch,
    source: Source,
    category_ids: Sequence[Any] | None = None,
) -> list[dict[str, Any]]:
    """Detections of a batch in COCO's form: source pixels, original image and category ids.

    Args:
        detections: boxes on the canvas; on the mirrored image if ``batch.flip`` is set.
        batch: the batch they were found in (padding images are skipped).
        source: where the batch came from.
        category_ids: the id of each of the detector's classes, None for classes to leave out;
            those of the source by default.

    Returns:
        Dicts of ``image_id``, ``category_id``, ``bbox`` (x, y, width, height) and ``score``.
    """
    ids = [c.id for c in source.categories] if category_ids is None else list(category_ids)
    known = np.array([category_id is not None for category_id in ids], bool)
    results = []
    for row in np.flatnonzero(np.asarray(batch.image_valid)):
        image_id = source.meta(int(np.asarray(batch.index)[row])).image_id
        boxes, scores, labels = found_in(detections, batch, int(row), known)
        boxes[:, 2:] -= boxes[:, :2]
        for box, score, label in zip(boxes.tolist(), scores.tolist(), labels, strict=True):
            results.append(
                {"image_id": image_id, "category_id": ids[label], "bbox": box, "score": score}
            )
    return results


def found_in(
    detections: Detections,
    batch: Batch,
    row: int,
    known: Bool[np.ndarray, "K"] | None = None,
    most: int | None = None,
) -> tuple[Float64[np.ndarray, "n 4"], Float64[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """The detections on one image of a batch, best first.

    Args:
        detections: of the batch, on the host.
        batch: where they were found.
        row: the image's row in the batch.
        known: the classes to keep; None: all.
        most: keep only this many best; None: all.

    Returns:
        (boxes, xyxy in source pixels; scores; labels).
    """
    boxes, scores, labels, valid = (np.asarray(part)[row] for part in detections)
    best = np.flatnonzero(valid if known is None else valid & known[labels])
    best = best[np.argsort(-scores[best], kind="stable")][:most]
    kept = boxes[best].astype(np.float64)
    if np.asarray(batch.flip)[row]:
        kept[:, [0, 2]] = np.asarray(batch.sizes)[row, 1] - kept[:, [2, 0]]
    kept /= np.tile(np.asarray(batch.scale)[row], 2)
    return kept, scores[best].astype(np.float64), labels[best]


def _renumbered(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "id": number} for number, row in enumerate(rows, 1)]


def _by_id(row: dict[str, Any]) -> tuple[bool, Any]:
    key = id_key(row["id"])
    return isinstance(key, str), key


def _numbers(rows: list[dict[str, Any]], kind: str) -> dict[Any, int]:
    numbers = {id_key(row["id"]): number for number, row in enumerate(rows, 1)}
    if len(numbers) != len(rows):
        (again, times), *_ = Counter(id_key(row["id"]) for row in rows).most_common(1)
        raise UserError(f"{kind} id {again!r} occurs {times} times in the ground truth")
    return numbers


def _mean(values: np.ndarray) -> float:
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else -1.0


def indexed(
    annotations_class: Any, truth: dict[str, Any], annotations: list[dict[str, Any]]
) -> Any:
    """Annotations, or detections with an id and an area each, as an evaluator takes them."""
    coco = annotations_class()
    coco.dataset = {**truth, "annotations": annotations}
    coco.createIndex()
    return coco
