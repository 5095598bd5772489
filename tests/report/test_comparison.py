"""What a comparison makes of runs whose stored numbers and detections differ."""

from __future__ import annotations

import dataclasses

import pytest

from drkd_jax.errors import UserError
from drkd_jax.report.comparison import compare
from drkd_jax.report.runs import open_truth, read_run
from tests.report.made import leave_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("compared")
    return [read_run(name, leave_run(root / name, noise)) for name, noise in (("a", 6), ("b", 1))]


@pytest.fixture(scope="module")
def truth(runs):
    found, _ = open_truth(runs[0])
    return found


def scored(run, gap=0.0, **changes):
    return dataclasses.replace(run, scores={**run.scores, "AP": run.scores["AP"] + gap}, **changes)


def test_differences_are_of_each_run_minus_the_reference(runs, truth):
    found = compare(runs, 0, truth, draws=20)
    own = [run.scores["AP"] for run in runs]
    assert [each["AP"].value for each in found.scores] == pytest.approx(own, abs=1e-12)
    assert found.differences[0]["AP"] == (0.0, 0.0, 0.0)
    gap = found.differences[1]["AP"]
    assert gap.value == pytest.approx(own[1] - own[0], abs=1e-12)
    assert 0 < gap.low <= gap.high
    assert (found.own, found.notes) == ([True, True], [])
    assert sum(found.objects.values()) == len(truth.objects)


@pytest.mark.parametrize("gap", [2e-3, -2e-3])
def test_stored_numbers_of_other_detections_are_told(runs, truth, gap):
    found = compare([runs[0], scored(runs[1], gap)], 0, truth, draws=2)
    assert found.own == [True, False]
    (note,) = found.notes
    assert note.startswith("b: its detections give AP ")
    assert compare([runs[0], scored(runs[1], gap / 10)], 0, truth, draws=2).own == [True, True]


def test_numbers_of_more_images_are_not_of_these_and_need_no_note(runs, truth):
    for gap in (0.0, 0.1):
        found = compare([scored(runs[0], gap, images=9), runs[1]], 0, truth, draws=2)
        assert (found.own, found.notes) == ([False, True], [])
    unknown = compare([scored(runs[0], images=0), runs[1]], 0, truth, draws=2)
    assert unknown.own == [True, True]


def test_crowd_regions_are_no_objects(runs, truth):
    first, *others = truth.coco["annotations"]
    coco = {**truth.coco, "annotations": [{**first, "iscrowd": 1}, *others]}
    found = compare(runs, 0, truth._replace(coco=coco), draws=2)
    assert sum(found.objects.values()) == len(others)


def test_without_any_object_no_number_is_doubted(runs, truth):
    coco = {**truth.coco, "annotations": []}
    bare = dataclasses.replace(runs[0], scores={**runs[0].scores, "AP": -1.0})
    found = compare([bare], 0, truth._replace(coco=coco), draws=2)
    assert (found.own, found.notes) == ([True], [])


def test_as_many_detections_count_as_in_the_stored_numbers(runs, truth):
    """Each detection once and 150 below it: at 100 the second best are not counted."""
    few = [{**row, "score": 0.9} for row in runs[0].found]
    image, category = few[0]["image_id"], few[0]["category_id"]
    wrong = {"image_id": image, "category_id": category, "bbox": [0, 0, 1, 1], "score": 0.99}
    many = dataclasses.replace(runs[1], found=[wrong] * 150 + few)
    at_100 = compare([many], 0, truth, draws=2)
    more = dataclasses.replace(many, scores={**many.scores, "AR200": 0.5})
    at_200 = compare([more], 0, truth, draws=2)
    assert at_200.scores[0]["AP"].value > at_100.scores[0]["AP"].value
    name = next(row["name"] for row in truth.coco["categories"] if row["id"] == category)
    assert at_200.class_ap[0][name] > at_100.class_ap[0][name]


def test_detections_on_unknown_images_name_their_file(runs, truth):
    strange = dataclasses.replace(runs[1], found=[{**runs[1].found[0], "image_id": 10**6}])
    with pytest.raises(UserError, match=r"b/detections\.json: "):
        compare([runs[0], strange], 0, truth, draws=2)
