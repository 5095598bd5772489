"""Ids of images, classes and annotations, of any type in a file."""

from __future__ import annotations

import numpy as np
import pytest

from drkd_jax.errors import UserError
from drkd_jax.evaluation import EVALUATORS, coco_numbers, coco_scores
from tests.test_evaluation import detection_of, pycocotools_numbers, random_set, truth_of


@pytest.mark.parametrize("evaluator", ["faster", "pycocotools"])
def test_an_annotation_of_id_0_can_be_found(evaluator):
    truth = truth_of([[0, 0, 50, 50]])
    truth["annotations"][0]["id"] = 0
    numbers = coco_numbers(truth, [detection_of([0, 0, 50, 50])], evaluator=evaluator)
    assert numbers["AP"] == pytest.approx(1)


def test_strange_ids():
    truth = truth_of([[0, 0, 50, 50]])
    with pytest.raises(UserError, match=r"images of the detections .* id 6"):
        coco_numbers(truth, [detection_of([0, 0, 9, 9], image_id=6)])
    with pytest.raises(UserError, match=r"images of the detections .* id 'x5'"):
        coco_numbers(truth, [detection_of([0, 0, 9, 9], image_id="x5")])
    as_text = [detection_of([0, 0, 50, 50], image_id="5")]
    assert coco_numbers(truth, as_text)["AP"] == pytest.approx(1)
    with pytest.raises(UserError, match=r"categories of the detections .* id 9"):
        coco_numbers(truth, [detection_of([0, 0, 9, 9]) | {"category_id": 9}])
    with pytest.raises(UserError, match="image id 5 occurs 2 times"):
        coco_numbers(truth | {"images": truth["images"] * 2}, [])


def with_ids(truth: dict, detections: list[dict], make) -> tuple[dict, list[dict]]:
    """The same set with other ids: ``make(n)`` instead of the number n."""

    def other(row: dict) -> dict:
        keys = [key for key in ("id", "image_id", "category_id") if key in row]
        return row | {key: make(row[key]) for key in keys}

    rows = {name: [other(row) for row in truth[name]] for name in truth}
    return rows, [other(row) for row in detections]


IDS = {
    "past what a double holds": lambda n: 2**53 + n,
    "past 64 bits": lambda n: 2**64 + n,
    "negative": lambda n: -n,
    "from 0": lambda n: n - 1,
    "texts": lambda n: f"image {n:03d}",
    "hashes as texts": lambda n: f"{n * 2**61:032x}",
}


@pytest.mark.parametrize("evaluator", list(EVALUATORS))
@pytest.mark.parametrize("kind", IDS)
def test_ids_of_any_kind_score_as_numbers_do(kind, evaluator):
    boxes = [[10.0 * i, 5, 30, 30 + i] for i in range(6)]
    truth = {
        "images": [{"id": i + 1, "height": 100, "width": 100} for i in range(6)],
        "categories": [{"id": i, "name": str(i)} for i in (1, 2)],
        "annotations": [
            {
                "id": i + 1,
                "image_id": i + 1,
                "category_id": 1 + i % 2,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
            }
            for i, box in enumerate(boxes)
        ],
    }
    perfect = [
        # No two alike: of equal scores those of lower ids rank higher.
        {"image_id": i + 1, "category_id": 1 + i % 2, "bbox": box, "score": 0.9 - i / 100}
        for i, box in enumerate(boxes)
    ]
    neighbours = [row | {"image_id": row["image_id"] % 6 + 1} for row in perfect]
    half = perfect[:2] + neighbours[3:]
    some = [1, 2, 3, 4, 6]
    cases = [(perfect, None, 1.0), (neighbours, None, 0.008), (half, some, 42.5 / 101)]
    for detections, shown, score in cases:
        wanted = coco_scores(truth, detections, shown, "pycocotools")
        assert wanted.numbers["AP"] == pytest.approx(score, abs=0.02)
        changed = with_ids(truth, detections, IDS[kind])
        found = coco_scores(*changed, shown and map(IDS[kind], shown), evaluator)
        assert found.numbers == pytest.approx(wanted.numbers, abs=1e-12)
        assert found.class_ap == pytest.approx(wanted.class_ap, abs=1e-12)


@pytest.mark.parametrize("evaluator", list(EVALUATORS))
@pytest.mark.parametrize("seed", [4, 6, 13])
def test_equal_scores_rank_by_the_ids_of_images_whatever_their_order(seed, evaluator):
    truth, detections = random_set(seed)  # scores of one digit
    wanted = pycocotools_numbers(truth, detections)
    order = np.random.default_rng(seed).permutation(len(truth["images"]))
    shuffled = truth | {"images": [truth["images"][i] for i in order]}
    for content in (truth, shuffled):
        numbers = coco_numbers(content, detections, evaluator=evaluator)
        np.testing.assert_allclose(list(numbers.values()), wanted, atol=1e-14)
