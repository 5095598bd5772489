"""A detector from a work folder, on a whole source and on single files."""

import json

import cv2
import jax.numpy as jnp
import numpy as np
import pytest

from drkd_jax import __main__ as command_line
from drkd_jax import models
from drkd_jax.data.sources import open_source
from drkd_jax.evaluation import NUMBERS, coco_numbers
from drkd_jax.training.checkpoint import Checkpoints
from drkd_jax.training.sharding import data_mesh, put_everywhere
from drkd_jax.training.state import TrainState, take_apart
from tests.training import tiny

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A detector with random weights that lets even its worst boxes through."""
    folder = tmp_path_factory.mktemp("work")
    config = tiny.config()
    config["data"]["canvases"] = ((96, 96),)
    config["student"]["test"] = {"score": 0.0, "max_out": 5}
    source = open_source(config["data"]["val"])
    settings = {key: value for key, value in config["student"].items() if key != "init"}
    student = models.init_detector(settings, len(source.categories), 1)
    parts = take_apart(student, student.is_trained)
    state = TrainState(jnp.int32(4), {"student": parts.params}, {"student": parts.rest}, ())
    checkpoints = Checkpoints(folder, 1)
    categories = [list(category) for category in source.categories]
    checkpoints.save_best(
        put_everywhere(state, data_mesh()),
        {"config": config, "categories": categories, "numbers": {"AP": 0.0}},
    )
    checkpoints.close()
    return folder


def test_evaluate_prints_the_12_numbers_and_writes_them(workdir, capsys):
    assert command_line.main(["evaluate", f"--workdir={workdir}"]) == 0
    printed = capsys.readouterr().out.splitlines()
    written = json.loads((workdir / "eval.json").read_text())
    assert [line.split()[0] for line in printed[1:]] == list(NUMBERS)
    for line in printed[1:]:
        name, value = line.split()[:2]
        assert float(value) == pytest.approx(written[name], abs=5e-5)
    assert written["step"] == 4
    assert written["data"] == "shapes:6:1"
    out = workdir / "other"
    out.mkdir()
    asked = ["evaluate", f"--workdir={workdir}", "--evaluator=pycocotools", f"--out={out}"]
    assert command_line.main(asked) == 0
    other = json.loads((out / "eval.json").read_text())
    for name in NUMBERS:
        assert other[name] == pytest.approx(written[name], abs=1e-9)
    found = json.loads((workdir / "detections.json").read_text())
    source = open_source("shapes:6:1")
    assert {item["image_id"] for item in found} == {source.meta(i).image_id for i in range(6)}
    again = coco_numbers(source.coco_ground_truth(), found)
    for name in NUMBERS:
        assert again[name] == pytest.approx(written[name], abs=1e-9)


def test_an_exported_file_is_scored_as_its_run_is(workdir, capsys, tmp_path):
    file = str(tmp_path / "student.safetensors")
    export = ["export", f"--workdir={workdir}", "--format=safetensors", file]
    assert command_line.main(export) == 0
    call = ["evaluate", f"--weights={file}", "--data=shapes:6:1", f"--out={tmp_path}"]
    assert command_line.main([*call, "--batch-size=4"]) == 0
    assert command_line.main(["evaluate", f"--workdir={workdir}"]) == 0
    assert "shapes:6:1, " + file in capsys.readouterr().out
    pairs = [json.loads((folder / "eval.json").read_text()) for folder in (tmp_path, workdir)]
    assert pairs[0] == pairs[1]


def test_evaluate_on_data_of_other_classes_is_refused(workdir, capsys, tmp_path):
    instances = {
        "images": [{"id": 1, "file_name": "a.png", "height": 50, "width": 60}],
        "categories": [{"id": 3, "name": "cat"}],
        "annotations": [],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(instances))
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((50, 60, 3), np.uint8))
    data = f"--data=coco:{tmp_path}:{tmp_path / 'boxes.json'}"
    assert command_line.main(["evaluate", f"--workdir={workdir}", data]) == 2
    assert "has the classes cat (id 3); the detector knows" in capsys.readouterr().err


def test_predict_draws_and_writes_coco_json_in_the_pictures_own_pixels(workdir, tmp_path, capsys):
    rng = np.random.default_rng(0)
    sizes = {"wide.png": (60, 110), "tall.jpg": (130, 70)}
    for name, size in sizes.items():
        cv2.imwrite(str(tmp_path / name), rng.integers(0, 255, (*size, 3), dtype=np.uint8))
    out = tmp_path / "out"
    paths = [str(tmp_path / name) for name in sizes]
    arguments = ["predict", f"--workdir={workdir}", f"--out={out}", "--score=0", *paths]
    assert command_line.main(arguments) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    result = json.loads((out / "detections.json").read_text())
    assert [image["file_name"] for image in result["images"]] == paths
    assert len(result["categories"]) == 6
    assert len({item["id"] for item in result["annotations"]}) == len(result["annotations"]) == 10
    for image in result["images"]:
        name = image["file_name"].rsplit("/", 1)[1]
        assert (image["height"], image["width"]) == sizes[name]
        drawn = cv2.imread(str(out / f"{name[:-4]}.png"))
        assert drawn is not None
        assert drawn.shape[0] / drawn.shape[1] == pytest.approx(
            image["height"] / image["width"], rel=0.02
        )
        for item in result["annotations"]:
            if item["image_id"] == image["id"]:
                x, y, width, height = item["bbox"]
                assert -1e-3 <= x <= x + width <= image["width"] + 1e-3
                assert -1e-3 <= y <= y + height <= image["height"] + 1e-3
                assert item["area"] == pytest.approx(width * height)


def test_predict_names_a_file_that_is_no_picture(workdir, tmp_path, capsys):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    assert (
        command_line.main(["predict", f"--workdir={workdir}", f"--out={tmp_path}", str(broken)])
        == 2
    )
    assert "broken.jpg" in capsys.readouterr().err
