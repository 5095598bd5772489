from __future__ import annotations

import numpy as np
import pytest

from drkd_jax.data.pipeline import PipelineConfig, eval_batches
from drkd_jax.data.sources import Source, open_source
from drkd_jax.evaluation import (
    EVALUATORS,
    class_names,
    coco_numbers,
    coco_scores,
    found_in,
    number_names,
    to_coco,
    why_nothing_to_find,
)
from drkd_jax.types import Batch, Detections

CONFIG = PipelineConfig(
    batch_size=4, canvases=((96, 144), (144, 96)), shorter=96, longer=144, num_threads=0
)


@pytest.fixture(scope="module")
def source() -> Source:
    return open_source("shapes:20")


def perfect(batch: Batch) -> Detections:
    """The batch's own ground truth as detections."""
    boxes = batch.boxes.copy()
    flipped = batch.flip[:, None]
    width = batch.sizes[:, 1:].astype(np.float32)
    boxes[..., 0] = np.where(flipped, width - batch.boxes[..., 2], boxes[..., 0])
    boxes[..., 2] = np.where(flipped, width - batch.boxes[..., 0], boxes[..., 2])
    scores = np.where(batch.valid, 0.9, 0).astype(np.float32)
    return Detections(boxes, scores, batch.labels, batch.valid)


def found(source: Source, change=lambda batch: batch) -> list[dict]:
    batches = [change(batch) for batch in eval_batches(source, CONFIG)]
    return [d for batch in batches for d in to_coco(perfect(batch), batch, source)]


def test_perfect_detections_score_one(source):
    numbers = coco_numbers(source.coco_ground_truth(), found(source))
    assert tuple(numbers) == number_names()
    for name in ("AP", "AP50", "AP75", "AP_S", "AP_M", "AR100"):
        assert numbers[name] == pytest.approx(1.0, abs=1e-6)


def test_boxes_come_back_in_source_pixels(source):
    truth = {a["id"]: a for a in source.coco_ground_truth()["annotations"]}
    detections = found(source)
    assert len(detections) == len(truth)
    for mirrored in (False, True):
        flip = found(source, lambda b, m=mirrored: b._replace(flip=np.full(len(b.flip), m)))
        key = lambda d: (d["image_id"], d["category_id"], *np.round(d["bbox"], 2))  # noqa: E731
        ours, theirs = sorted(flip, key=key), sorted(truth.values(), key=key)
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a["bbox"], b["bbox"], atol=1e-3)
            assert a["category_id"] == b["category_id"]


def test_original_ids(coco_sample):
    source = open_source(f"coco:{coco_sample / 'images'}:{coco_sample / 'instances_val.json'}")
    batch = next(iter(eval_batches(source, CONFIG, max_images=4)))
    ids = {d["category_id"] for d in to_coco(perfect(batch), batch, source)}
    truth = source.coco_ground_truth()
    wanted = {source.meta(int(i)).image_id for i in batch.index[batch.image_valid]}
    assert ids == {
        a["category_id"]
        for a in truth["annotations"]
        if a["image_id"] in wanted and not a["iscrowd"]
    }


def truth_of(boxes: list[list[float]], crowd: int = 0) -> dict:
    return {
        "images": [{"id": 5, "file_name": "x", "height": 100, "width": 100}],
        "categories": [{"id": 2, "name": "a"}, {"id": 4, "name": "b"}],
        "annotations": [
            {
                "id": i + 1,
                "image_id": 5,
                "category_id": 2,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": crowd,
            }
            for i, box in enumerate(boxes)
        ],
    }


def detection_of(box: list[float], score: float = 0.5, image_id: int = 5) -> dict:
    return {"image_id": image_id, "category_id": 2, "bbox": box, "score": score}


def test_half_of_two_boxes():
    truth = truth_of([[0, 0, 50, 50], [60, 60, 30, 30]])
    numbers = coco_numbers(truth, [detection_of([0, 0, 50, 50])])
    # Precision 1 up to recall 0.5: 51 of the 101 recall levels.
    assert numbers["AP"] == pytest.approx(51 / 101)
    assert numbers["AR100"] == pytest.approx(0.5)
    assert numbers["AP_S"] == 0  # the 30 x 30 box is missed
    assert numbers["AP_M"] == pytest.approx(1)
    assert numbers["AP_L"] == -1


def test_nothing_found():
    numbers = coco_numbers(truth_of([[0, 0, 50, 50]]), [])
    assert numbers["AP"] == 0
    assert numbers["AR100"] == 0


@pytest.mark.parametrize("detections", [[], [detection_of([0, 0, 9, 9])]])
def test_nothing_to_find(detections):
    numbers = coco_numbers(truth_of([]), detections)
    assert set(numbers.values()) == {-1.0}


def test_no_image():
    empty = {"images": [], "categories": [], "annotations": []}
    assert set(coco_numbers(empty, []).values()) == {-1.0}


def test_crowd_regions_forgive():
    truth = truth_of([[0, 0, 50, 50]])
    truth["annotations"] += truth_of([[60, 60, 40, 40]], crowd=1)["annotations"]
    truth["annotations"][1]["id"] = 2
    inside_crowd = detection_of([65, 65, 20, 20], score=0.9)
    numbers = coco_numbers(truth, [inside_crowd, detection_of([0, 0, 50, 50])])
    assert numbers["AP"] == pytest.approx(1)


def test_only_some_images(source):
    truth, detections = source.coco_ground_truth(), found(source)
    seen = [d for d in detections if d["image_id"] < 10]
    assert coco_numbers(truth, seen, range(10))["AP"] == pytest.approx(1)
    assert coco_numbers(truth, seen)["AP"] < 0.9


def test_class_ap():
    scores = coco_scores(truth_of([[0, 0, 50, 50]]), [detection_of([0, 0, 50, 50])])
    assert scores.class_ap == {"a": pytest.approx(1.0), "b": -1.0}


def test_silent_and_leaves_its_input_alone(capsys):
    truth, detections = truth_of([[0, 0, 50, 50]]), [detection_of([0, 0, 50, 50])]
    coco_numbers(truth, detections)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
    assert truth == truth_of([[0, 0, 50, 50]])
    assert detections == [detection_of([0, 0, 50, 50])]


def random_set(seed: int) -> tuple[dict, list[dict]]:
    """Crowds, empty images, tied scores, exact copies, few or many classes and detections."""
    rng = np.random.default_rng(seed)
    num_images, num_classes = [4, 20, 40][seed % 3], [1, 5, 80, 300][seed % 4]
    images = [
        {"id": 3 * i, "file_name": f"{i}.jpg", "height": 480, "width": 640}
        for i in range(num_images)
    ]
    annotations, detections = [], []
    for image in images:
        count = 0 if rng.random() < 0.2 else rng.poisson([2, 8][seed % 2])
        boxes = np.concatenate(
            [rng.uniform(0, 400, (count, 2)), np.exp(rng.uniform(0.7, 5.7, (count, 2)))], axis=1
        )
        labels = rng.integers(1, num_classes + 1, count)
        for box, label in zip(boxes.round(2).tolist(), labels.tolist(), strict=True):
            annotations.append(
                {
                    "id": len(annotations),  # from 0 on
                    "image_id": image["id"],
                    "category_id": label,
                    "bbox": box,
                    "area": box[2] * box[3] * float(rng.choice([1.0, 0.6])),
                    "iscrowd": int(rng.random() < 0.1),
                }
            )
        for _ in range(rng.poisson([10, 45, 150][seed % 3])):
            box, label = [*rng.uniform(0, 400, 2), *np.exp(rng.uniform(0, 5.5, 2))], 1
            if count and rng.random() < 0.7:
                at = rng.integers(count)
                noise = rng.normal(0, rng.choice([0, 0.02, 0.1]), 4) * boxes[at, [2, 3, 2, 3]]
                box, label = np.maximum(boxes[at].round(2) + noise, 0.1), int(labels[at])
            score = round(float(rng.random()), 1 if seed // 4 % 2 else 6)
            found = {"category_id": label, "bbox": [float(x) for x in box], "score": score}
            detections.append({"image_id": image["id"], **found})
    categories = [{"id": i + 1, "name": f"class {i}"} for i in range(num_classes)]
    return {"images": images, "annotations": annotations, "categories": categories}, detections


@pytest.mark.parametrize("seed", range(20))
def test_both_evaluators_give_the_same_numbers(seed):
    truth, detections = random_set(seed)
    some = None if seed % 5 else [image["id"] for image in truth["images"][::2]]
    ours, theirs = (
        coco_scores(truth, detections, some, evaluator) for evaluator in ("faster", "pycocotools")
    )
    assert set(ours.numbers) == set(number_names())
    for name, value in theirs.numbers.items():
        assert ours.numbers[name] == pytest.approx(value, abs=1e-14), name
    assert list(ours.class_ap) == list(theirs.class_ap)
    np.testing.assert_allclose(
        list(ours.class_ap.values()), list(theirs.class_ap.values()), atol=1e-14
    )
    assert 0 < theirs.numbers["AP"] < 1


def crowded(count: int) -> tuple[dict, list[dict]]:
    """One image with this many objects in rows of 20, all found, with falling scores."""
    boxes = [[12.0 * (i % 20), 12.0 * (i // 20), 10.0, 10.0] for i in range(count)]
    return truth_of(boxes), [detection_of(box, 1 - i / 1000) for i, box in enumerate(boxes)]


@pytest.mark.parametrize("evaluator", list(EVALUATORS))
def test_more_than_100_objects_count_where_they_are_asked_for(evaluator):
    truth, detections = crowded(250)
    usual = coco_numbers(truth, detections, evaluator=evaluator)
    assert usual["AR100"] == pytest.approx(100 / 250)
    # Precision 1 up to recall 0.4: 41 of the 101 recall levels.
    assert usual["AP"] == pytest.approx(41 / 101)
    more = coco_scores(truth, detections, None, evaluator, 250)
    assert tuple(more.numbers)[6:9] == ("AR1", "AR10", "AR250")
    assert more.numbers["AP"] == more.numbers["AR250"] == pytest.approx(1)
    assert more.numbers["AP_S"] == more.numbers["AR_S"] == pytest.approx(1)
    assert more.numbers["AR10"] == pytest.approx(10 / 250)
    assert more.class_ap == {"a": pytest.approx(1), "b": -1}


def pycocotools_numbers(truth: dict, detections: list[dict]) -> np.ndarray:
    """The summary of pycocotools itself, with the set's ids except for those of annotations."""
    coco = EVALUATORS["pycocotools"][0]()
    rows = enumerate(truth["annotations"], 1)
    coco.dataset = truth | {"annotations": [dict(row, id=number) for number, row in rows]}
    coco.createIndex()
    scorer = EVALUATORS["pycocotools"][1](coco, coco.loadRes(detections), "bbox")
    scorer.evaluate()
    scorer.accumulate()
    scorer.summarize()
    return scorer.stats


@pytest.mark.parametrize("seed", [3, 9, 14])
def test_the_numbers_are_those_that_pycocotools_sums_up(seed, capsys):
    truth, detections = random_set(seed)
    wanted = coco_numbers(truth, detections)
    stats = pycocotools_numbers(truth, detections)
    np.testing.assert_allclose(list(wanted.values()), stats, atol=1e-14)


def test_why_there_is_nothing_to_find():
    assert why_nothing_to_find(truth_of([[0, 0, 9, 9]])) is None
    assert "no annotation in 1 image" in why_nothing_to_find(truth_of([]))
    assert "only crowd regions (1)" in why_nothing_to_find(truth_of([[0, 0, 9, 9]], crowd=1))
    assert "in 0 images" in why_nothing_to_find(truth_of([[0, 0, 9, 9]]), [7])

    for area in (-20, 1e11):  # which no evaluator counts
        truth = truth_of([[0, 0, 9, 9]])
        truth["annotations"][0]["area"] = area
        assert coco_numbers(truth, [detection_of([0, 0, 9, 9])])["AP"] == -1
        assert "only annotations with an area under 0" in why_nothing_to_find(truth)
    for area in (0, 1e10):
        truth["annotations"][0]["area"] = area
        assert coco_numbers(truth, [detection_of([0, 0, 9, 9])])["AP"] == pytest.approx(1)
        assert why_nothing_to_find(truth) is None


def test_classes_of_one_name_stay_apart():
    truth = truth_of([[0, 0, 50, 50]])
    truth["categories"][1]["name"] = "a"
    assert class_names(truth["categories"]) == ["a (id 2)", "a (id 4)"]
    assert coco_scores(truth, [detection_of([0, 0, 50, 50])]).class_ap == {
        "a (id 2)": pytest.approx(1),
        "a (id 4)": -1,
    }


def test_detections_by_other_ids_and_the_best_of_them(source):
    batch = next(iter(eval_batches(source, CONFIG)))
    every = to_coco(perfect(batch), batch, source)
    ids = [None, *range(10, 10 + len(source.categories) - 1)]
    some = to_coco(perfect(batch), batch, source, ids)
    first = source.categories[0].id
    assert len(some) == sum(row["category_id"] != first for row in every) < len(every)
    assert {row["category_id"] for row in some} <= set(ids)
    scores = np.linspace(0.1, 0.9, batch.boxes.shape[1], dtype=np.float32)
    rising = perfect(batch)._replace(scores=np.tile(scores, (len(batch.boxes), 1)))
    equal = rising._replace(scores=np.full_like(rising.scores, 0.5))
    for row in np.flatnonzero(batch.image_valid).tolist():
        count = int(batch.valid[row].sum())
        best = found_in(rising, batch, row, most=1)
        assert best[1] == pytest.approx(scores[:count][-1:])
        first = found_in(equal, batch, row, most=1)  # of the detector's order
        np.testing.assert_array_equal(first[2], batch.labels[row, :count][:1])
