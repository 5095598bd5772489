"""Boxes in another form or unit: the cause is named, and sound sets cause no message."""

from __future__ import annotations

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from drkd_jax import __main__ as program
from drkd_jax.data.checking.box_form import box_form
from drkd_jax.data.checking.check import check
from drkd_jax.data.checking.findings import find, require_usable
from drkd_jax.data.pipeline import PipelineConfig
from drkd_jax.data.plan import train_fits
from drkd_jax.data.sources import open_source
from drkd_jax.data.sources.instances import parse_instances
from drkd_jax.errors import UserError

WIDTH, HEIGHT, IMAGES, EACH = 640, 480, 30, 5


def boxes(seed: int = 0) -> np.ndarray:
    """Correct boxes, x y width height, spread over the images."""
    rng = np.random.default_rng(seed)
    count = IMAGES * EACH
    size = rng.uniform(10, 120, (count, 2))
    corner = rng.uniform(0, 1, (count, 2)) * ([WIDTH, HEIGHT] - size)
    return np.concatenate([corner, size], axis=1)


def table(values: np.ndarray, area: np.ndarray | None = None):
    return parse_instances(content(values, area), "x")


def content(values: np.ndarray, area: np.ndarray | None = None) -> dict:
    size = {"height": HEIGHT, "width": WIDTH}
    annotations = [
        {"id": i + 1, "image_id": i // EACH, "category_id": 1, "bbox": box}
        for i, box in enumerate(values.tolist())
    ]
    if area is not None:
        for row, value in zip(annotations, area, strict=True):
            row["area"] = float(value)
    return {
        "images": [{"id": i, "file_name": f"{i}.png", **size} for i in range(IMAGES)],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "thing"}],
    }


def normalised(values: np.ndarray) -> np.ndarray:
    return values / [WIDTH, HEIGHT, WIDTH, HEIGHT]


def corners(values: np.ndarray) -> np.ndarray:
    return np.concatenate([values[:, :2], values[:, :2] + values[:, 2:]], axis=1)


def centres(values: np.ndarray) -> np.ndarray:
    return np.concatenate([values[:, :2] + values[:, 2:] / 2, values[:, 2:]], axis=1)


def partly(form, share: float):
    def change(values: np.ndarray) -> np.ndarray:
        count = int(share * len(values))
        return np.concatenate([form(values[:count]), values[count:]])

    return change


def past_one(values: np.ndarray) -> np.ndarray:
    """Normalised boxes; some reach outside their image, one is as large as it."""
    values = normalised(values)
    values[:6] += [-0.08, 0.03, 0.1, 0.1]
    values[7] = [0, 0, 1, 1]
    return values


FORMS = {
    "normalised": (normalised, "normalised?"),
    "normalised corners": (lambda v: corners(normalised(v)), "normalised?"),
    "normalised, some past 1": (past_one, "normalised?"),
    "a fifth normalised": (partly(normalised, 0.2), "normalised?"),
    "corners": (corners, "corners instead of width and height?"),
    "a quarter corners": (partly(corners, 0.25), "corners instead of width and height?"),
    "centres": (centres, "centres instead of top left corners?"),
    "y first": (lambda v: v[:, [1, 0, 3, 2]], "y before x?"),
    "percent": (lambda v: 100 * normalised(v), "in percent?"),
    "corners, y first": (lambda v: corners(v)[:, [1, 0, 3, 2]], "corners, y before x"),
    "spans": (lambda v: corners(v)[:, [0, 2, 1, 3]], "spans (xmin, xmax, ymin, ymax)?"),
    "of a larger image": (lambda v: 3 * v, "images of another size?"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_cause_is_named(form, seed):
    change, told = FORMS[form]
    assert told in box_form(table(change(boxes(seed)))).cause


@pytest.mark.parametrize(
    ("sizes", "whole", "told"),
    [
        ([(1080, 1920)], 1000, "in thousandths?"),
        ([(3000, 4000), (2000, 1500)], 1000, "in thousandths?"),
        ([(375, 500), (180, 300)], 100, "in percent?"),
        ([(3000, 4000)], 100, "in percent?"),
        ([(1080, 1920)], None, ""),
        ([(375, 500), (180, 300)], None, ""),
    ],
)
def test_shares_of_images_of_any_size(sizes, whole, told):
    values = normalised(boxes())
    made = content(values)
    for number, image in enumerate(made["images"]):
        image["height"], image["width"] = sizes[number % len(sizes)]
    for row, value in zip(made["annotations"], values, strict=True):
        height, width = sizes[row["image_id"] % len(sizes)]
        scale = [width, height, width, height] if whole is None else [whole] * 4
        row["bbox"] = (value * scale).tolist()
    cause = box_form(parse_instances(made, "x")).cause
    assert told in cause if told else cause == ""


def test_a_stated_area_gives_corners_away_where_nothing_is_cut():
    small = boxes() / 4
    area = small[:, 2] * small[:, 3]
    assert "corners" in box_form(table(corners(small), area)).cause


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_said_of_sound_boxes(seed):
    rng, values = np.random.default_rng(seed), boxes(seed)
    assert box_form(table(values)).share == 0
    assert box_form(table(values)).cause == ""
    masks = values[:, 2] * values[:, 3] * rng.uniform(0.2, 1, len(values))
    assert box_form(table(values, masks)).cause == ""
    reaching = values + rng.normal(0, 15, values.shape) * (rng.random((len(values), 1)) < 0.5)
    reaching[:, 2:] = np.maximum(reaching[:, 2:], 5)
    assert box_form(table(reaching)).cause == ""


def test_an_area_that_is_none_says_nothing_of_the_form():
    values = boxes()
    form = box_form(table(values, np.full(len(values), -1.0)))
    assert (form.share, form.cause, form.none_usable) == (1, "", True)


@pytest.fixture
def spec(tmp_path: Path):
    def write(values: np.ndarray) -> str:
        (tmp_path / "images").mkdir(exist_ok=True)
        path = tmp_path / "instances.json"
        path.write_text(json.dumps(content(values)))
        return f"coco:{tmp_path / 'images'}:{path}"

    return write


@pytest.mark.parametrize("drop_empty", [False, True])
@pytest.mark.parametrize("form", ["normalised", "normalised corners", "normalised, some past 1"])
def test_no_usable_box_stops_a_run(spec, form, drop_empty):
    config = PipelineConfig(
        batch_size=1, canvases=((64, 64),), shorter=64, longer=64, drop_empty=drop_empty
    )
    source = open_source(spec(FORMS[form][0](boxes())))
    with pytest.raises(UserError, match=r"no box to train on among its 150 .*normalised\?"):
        train_fits(source, config)


@pytest.mark.parametrize("form", FORMS)
def test_the_check_says_what_the_start_says(spec, form):
    name = spec(FORMS[form][0](boxes()))
    texts = [finding.text for finding in find(open_source(name))]
    assert any(FORMS[form][1] in text for text in texts)
    report = check(name)
    assert set(texts) <= {*report.warnings, *report.errors}


# The form, and whether most boxes are wrong by it beyond doubt. Shares of 100 lie where small sound
# boxes could, and a few of centres' are cut where a tenth of sound ones might be.
ERRORS = {
    "corners": True,
    "corners, y first": True,
    "y first": True,
    "spans": True,
    "of a larger image": True,
    "a quarter corners": False,
    "a fifth normalised": False,
    "centres": False,
    "percent": False,
}


@pytest.mark.parametrize("form", ERRORS)
def test_a_check_ends_with_an_error_where_most_boxes_are_of_another_form(spec, form, capsys):
    change, told = FORMS[form]
    made = spec(change(boxes()))
    for number in range(IMAGES):
        path = Path(made.split(":")[1]) / f"{number}.png"
        cv2.imwrite(str(path), np.full((HEIGHT, WIDTH), number, np.uint8))
    code = program.main(["prepare", "--check", made])
    lines = [line for line in capsys.readouterr().out.splitlines() if told in line]
    assert len(lines) == 1
    assert lines[0].startswith("error: " if ERRORS[form] else "warning: ")
    assert lines[0].endswith("nothing is right to learn from or to score") == ERRORS[form]
    assert code == (2 if ERRORS[form] else 0)


@pytest.mark.parametrize("form", ERRORS)
def test_a_run_and_a_score_stop_where_the_check_ends_with_an_error(spec, form):
    config = PipelineConfig(batch_size=1, canvases=((640, 640),), shorter=480, longer=640)
    change, told = FORMS[form]
    source = open_source(spec(change(boxes())))
    if not ERRORS[form]:
        assert len(train_fits(source, config).indices)
        require_usable(source)
        return
    told = rf"{re.escape(source.spec)}: \d+% of 150 boxes .*{re.escape(told)}.*convert them"
    with pytest.raises(UserError, match=told):
        train_fits(source, config)
    with pytest.raises(UserError, match=told):
        require_usable(source)


def test_all_boxes_normalised_are_one_error(spec):
    report = check(spec(normalised(boxes())))
    (error,) = (text for text in report.errors if "normalised?" in text)
    assert error.startswith("no box to train on")


def test_large_objects_whose_boxes_reach_out_are_no_error():
    """Boxes nearly as large as their images would all fit as corners."""
    rng = np.random.default_rng(0)
    low = rng.uniform(2, 20, (150, 2))
    values = np.concatenate([low, [WIDTH, HEIGHT] - low - rng.uniform(0, 2, (150, 2))], axis=1)
    values[:40, 2:] += 4
    form = box_form(table(values))
    assert "corners" in form.cause
    assert not form.wrong


def test_a_few_boxes_that_reach_out_are_no_error():
    """One image with one large object, as in a trial set: reported, not refused."""
    few = table(np.array([[10.0, 10.0, 635.0, 400.0]]))
    assert "corners" in box_form(few).cause
    assert not box_form(few).wrong
    few = box_form(table(centres(boxes()[-EACH:] * [1, 1, 1.25, 1.25])))
    assert "centres" in few.cause
    assert not few.wrong
