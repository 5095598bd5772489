"""A detector from a work folder, applied to a whole source and to single files."""

import json

import cv2
import jax.numpy as jnp
import numpy as np
import pytest

from drkd_jax import __main__ as command_line
from drkd_jax import models, weights
from drkd_jax.cli import detector, evaluate, predict
from drkd_jax.data.sources import open_source
from drkd_jax.errors import UserError
from drkd_jax.evaluation import coco_numbers, number_names
from drkd_jax.fault_tolerance.checkpoint import Checkpoints
from drkd_jax.step.sharding import data_mesh, put_everywhere
from drkd_jax.step.state import TrainState, split_module
from tests.training import tiny


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A detector with random weights that keeps even its worst boxes."""
    folder = tmp_path_factory.mktemp("work")
    config = tiny.config()
    config["data"]["canvases"] = ((96, 96),)
    config["student"]["test"] = {"score": 0.0, "max_out": 5}
    config["student"]["min_level"] = 3  # enough boxes for more than 100 detections
    source = open_source(config["data"]["val"])
    settings = {key: value for key, value in config["student"].items() if key != "init"}
    student = models.init_detector(settings, len(source.categories), 1)
    parts = split_module(student, student.is_trained)
    state = TrainState(jnp.int32(4), {"student": parts.params}, {"student": parts.model_state}, ())
    checkpoints = Checkpoints(folder, 1)
    categories = [list(category) for category in source.categories]
    checkpoints.save_best(
        put_everywhere(state, data_mesh()),
        {"config": config, "categories": categories, "numbers": {"AP": 0.0}},
    )
    checkpoints.close()
    return folder


@pytest.fixture(scope="module")
def trained(workdir):
    """The detector of `workdir`, loaded and compiled once."""
    read = detector.read(weights.load(workdir))
    return detector.ready(read, read.eval.least_limit)


@pytest.fixture
def loaded(trained, monkeypatch):
    """Makes `evaluate` use it."""
    monkeypatch.setattr(evaluate, "load_named", lambda *_: trained)


def test_evaluate_prints_the_12_numbers_and_writes_them(workdir, capsys):
    assert command_line.main(["evaluate", f"--workdir={workdir}"]) == 0
    printed = capsys.readouterr().out.splitlines()
    written = json.loads((workdir / "eval.json").read_text())
    assert [line.split()[0] for line in printed[1:]] == list(number_names())
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
    for name in number_names():
        assert other[name] == pytest.approx(written[name], abs=1e-9)
    found = json.loads((workdir / "detections.json").read_text())
    source = open_source("shapes:6:1")
    assert {item["image_id"] for item in found} == {source.meta(i).image_id for i in range(6)}
    again = coco_numbers(source.coco_ground_truth(), found)
    for name in number_names():
        assert again[name] == pytest.approx(written[name], abs=1e-9)


def test_an_exported_file_is_scored_as_its_run_is(workdir, capsys, tmp_path):
    file = str(tmp_path / "student.safetensors")
    export = ["export", f"--workdir={workdir}", "--format=safetensors", file]
    assert command_line.main(export) == 0
    call = ["evaluate", f"--weights={file}", "--data=shapes:6:1", f"--out={tmp_path}"]
    assert command_line.main([*call, "--batch-size=4"]) == 0
    assert command_line.main(["evaluate", f"--workdir={workdir}"]) == 0
    assert f"shapes:6:1, {file}, detector, " in capsys.readouterr().out
    pairs = [json.loads((folder / "eval.json").read_text()) for folder in (tmp_path, workdir)]
    assert pairs[0] == pairs[1]


def test_a_work_folder_takes_a_batch_size_and_refuses_a_size(workdir, capsys, monkeypatch):
    seen = []

    def asked(read, _):
        seen.append((read.eval.batch_size, read.pipeline.batch_size))
        raise UserError("that is enough")

    monkeypatch.setattr(detector, "ready", asked)
    for more in ([], ["--batch-size=3"]):
        assert command_line.main(["evaluate", f"--workdir={workdir}", *more]) == 2
    assert seen == [(4, 4), (3, 3)]
    capsys.readouterr()
    assert command_line.main(["evaluate", f"--workdir={workdir}", "--size=64x96"]) == 2
    said = capsys.readouterr().err
    assert f"--size belongs to files of weights; {workdir} is a work folder" in said


def test_evaluate_on_data_of_other_classes_is_refused(workdir, loaded, capsys, tmp_path):
    instances = {
        "images": [{"id": 1, "file_name": "a.png", "height": 50, "width": 60}],
        "categories": [{"id": 3, "name": "cat"}],
        "annotations": [],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(instances))
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((50, 60, 3), np.uint8))
    data = f"--data=coco:{tmp_path}:{tmp_path / 'boxes.json'}"
    assert command_line.main(["evaluate", f"--workdir={workdir}", data]) == 2
    assert (
        "has the classes (3 cat), the detector was trained on (1 disc," in capsys.readouterr().err
    )


def small_set(folder, categories: list[dict], annotations: list[dict]) -> str:
    """A source of two dark images with these boxes."""
    images = [
        {"id": 2**53 + i, "file_name": f"{i}.png", "height": 50, "width": 60} for i in range(2)
    ]
    for image in images:
        cv2.imwrite(str(folder / image["file_name"]), np.zeros((50, 60, 3), np.uint8))
    rows = [
        {"id": i, "image_id": 2**53, "bbox": [5, 5, 20, 20], "area": 400, "iscrowd": 0} | row
        for i, row in enumerate(annotations)
    ]
    content = {"images": images, "categories": categories, "annotations": rows}
    (folder / "boxes.json").write_text(json.dumps(content))
    return f"coco:{folder}:{folder / 'boxes.json'}"


def test_classes_are_brought_together_by_name(workdir, loaded, capsys, tmp_path):
    categories = [{"id": 2**54, "name": "ring"}, {"id": -3, "name": "disc"}]
    data = small_set(tmp_path, categories, [{"category_id": -3}])
    call = ["evaluate", f"--workdir={workdir}", f"--data={data}", f"--out={tmp_path}"]
    assert command_line.main(call) == 0
    printed = capsys.readouterr().out
    assert "classes of --data=" in printed
    assert "mapped to those of the detector by name" in printed
    found = json.loads((tmp_path / "detections.json").read_text())
    assert {row["category_id"] for row in found} <= {2**54, -3}
    assert {row["image_id"] for row in found} <= {2**53, 2**53 + 1}
    assert found


def test_a_class_with_boxes_that_the_detector_does_not_know_is_refused(
    workdir, loaded, capsys, tmp_path
):
    categories = [{"id": 7, "name": "disc"}, {"id": 9, "name": "nut"}]
    data = small_set(tmp_path, categories, [{"category_id": 9}])
    assert command_line.main(["evaluate", f"--workdir={workdir}", f"--data={data}"]) == 2
    said = capsys.readouterr().err
    assert "has boxes of (9 nut), which the detector does not have" in said
    assert "7 disc" in said
    assert "1 disc, 2 ring" in said


@pytest.mark.parametrize("annotations", [[], [{"category_id": 7, "iscrowd": 1}]])
def test_why_every_number_is_minus_one(workdir, loaded, capsys, tmp_path, annotations):
    data = small_set(tmp_path, [{"id": 7, "name": "disc"}], annotations)
    call = ["evaluate", f"--workdir={workdir}", f"--data={data}", f"--out={tmp_path}"]
    assert command_line.main(call) == 0
    printed = capsys.readouterr().out
    assert printed.count("-1.0000") == 12
    what = "only crowd regions (1)" if annotations else "no annotation"
    assert f"there is nothing to find: {what} in 2 images" in printed


def test_what_a_run_says_of_its_data_is_said_here_too(workdir, loaded, capsys, tmp_path):
    call = ["evaluate", f"--workdir={workdir}", f"--out={tmp_path}"]
    box = {"category_id": 7, "bbox": [0.1, 0.2, 0.3, 0.4], "area": 0.12}
    data = small_set(tmp_path, [{"id": 7, "name": "disc"}], [box])
    assert command_line.main([*call, f"--data={data}"]) == 2
    assert "1 box has values between 0 and 1 only: normalised?" in capsys.readouterr().err
    data = small_set(tmp_path, [{"id": 7, "name": "disc"}], [{"category_id": 7}] * 101)
    assert command_line.main([*call, f"--data={data}"]) == 0
    said = capsys.readouterr().err
    assert "warning: 1 image has more than 100 boxes of a class (at most 101)" in said


def test_more_detections_are_let_through_and_counted(workdir, capsys, tmp_path):
    call = ["evaluate", f"--workdir={workdir}", f"--out={tmp_path}", "--max-detections=120"]
    assert command_line.main([*call, "--max-images=2"]) == 0
    printed = capsys.readouterr().out
    assert "AR120 " in printed
    assert "all,    120 detections" in printed
    found = json.loads((tmp_path / "detections.json").read_text())
    counts = [sum(row["image_id"] == i for row in found) for i in range(2)]
    assert counts == [120, 120]  # of a detector that gives 5 by itself
    assert "AR120" in json.loads((tmp_path / "eval.json").read_text())
    assert command_line.main([*call[:3], "--max-detections=10"]) == 2
    assert "must be more than 10" in capsys.readouterr().err


def test_a_score_of_other_images_is_not_replaced_without_a_word(loaded, capsys, tmp_path):
    own = {"step": 4, "data": "shapes:6:1", "images": 6, "AP": 0.5, "AR100": 0.5}
    file = tmp_path / "eval.json"

    def said(*flags: str) -> str:
        file.write_text(json.dumps(own))
        assert command_line.main(["evaluate", f"--workdir={tmp_path}", *flags]) == 0
        return capsys.readouterr().err

    told = f"{file} and detections.json beside it hold the scores of shapes:6:1 (6 images"
    assert told not in said()  # the same again
    err = said("--data=shapes:4:2")
    assert (
        f"warning: {told}, step 4), and those of shapes:4:2 (4 images, step 4) will replace" in err
    )
    assert json.loads(file.read_text())["data"] == "shapes:4:2"
    assert f"{told}, step 4), and those of shapes:6:1 (2 imag" in said("--max-images=2")
    assert "another limit), and those of" in said("--max-detections=120")
    assert told not in said("--data=shapes:4:2", f"--out={tmp_path / 'new'}")
    own |= {"step": 9}
    assert "(6 images, step 9), and those of shapes:6:1 (6 images, step 4)" in said()


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_nothing_to_be_kept_is_nothing_to_be_told(content, tmp_path):
    file = tmp_path / "eval.json"
    if content is not None:
        file.write_text(content)
    assert evaluate._replaced(file, {"step": 4}, evaluate.EvalSettings()) == ""


def test_numbers_are_printed_before_they_are_written(
    workdir, loaded, capsys, tmp_path, monkeypatch
):
    def full(*_):
        raise UserError("the disk is full")

    monkeypatch.setattr(evaluate, "write_evaluation", full)
    call = ["evaluate", f"--workdir={workdir}", "--max-images=2", f"--out={tmp_path / 'new'}"]
    assert command_line.main(call) == 2
    printed = capsys.readouterr()
    assert printed.out.count("\n") == 13
    assert "the disk is full" in printed.err


def test_a_work_folder_that_cannot_be_written_asks_for_another_place(
    workdir, loaded, capsys, monkeypatch
):
    def refused(_folder, flag=""):
        raise UserError(f"{flag}: cannot be written (read-only); name another place")

    monkeypatch.setattr(evaluate, "make_folder", refused)
    assert command_line.main(["evaluate", f"--workdir={workdir}"]) == 2
    assert "name another place for the results (--out=DIR)" in capsys.readouterr().err


def test_predict_by_a_file_of_weights_and_with_more_boxes(workdir, tmp_path):
    file = str(tmp_path / "student.safetensors")
    export = ["export", f"--workdir={workdir}", "--format=safetensors", file]
    assert command_line.main(export) == 0
    for i in range(4):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((50, 60, 3), 60 * i, np.uint8))
    out = tmp_path / "out"
    call = ["predict", f"--weights={file}", f"--out={out}", "--max=30", "--batch-size=4"]
    assert command_line.main([*call, *(str(tmp_path / f"{i}.png") for i in range(4))]) == 0
    result = json.loads((out / "detections.json").read_text())
    assert len(result["annotations"]) == 4 * 30
    assert [row["name"] for row in result["categories"]][:2] == ["disc", "ring"]


def test_predict_draws_and_writes_coco_json_in_the_images_own_pixels(workdir, tmp_path, capsys):
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


def test_a_model_in_python_finds_what_the_command_finds(workdir, trained, tmp_path):
    image = np.random.default_rng(3).integers(0, 255, (60, 45, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), image[..., ::-1])
    (wanted,) = predict.detect(trained, [tmp_path / "a.png"])
    model = weights.load(workdir)
    assert [category.name for category in model.categories] == [c.name for c in trained.categories]
    found = model.predict(image)
    np.testing.assert_array_equal(found.labels, wanted.labels)
    np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-6)
    np.testing.assert_allclose(found.boxes, wanted.boxes, atol=1e-3)
    assert len(model.predict(image, lowest=found.scores[1]).boxes) == 2


def test_predict_names_a_file_that_is_no_image(workdir, tmp_path, capsys):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    assert (
        command_line.main(["predict", f"--workdir={workdir}", f"--out={tmp_path}", str(broken)])
        == 2
    )
    assert "broken.jpg" in capsys.readouterr().err
