"""`visualize`: numbers and drawings of two checkpoints, against the distiller's relations."""

import argparse
import dataclasses
import json
from unittest import mock

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from drkd_jax import __main__ as command_line
from drkd_jax import distill, models
from drkd_jax.cli import visualize
from drkd_jax.cli.detector import read
from drkd_jax.cli.inputs import find_images
from drkd_jax.cli.two_sides import boxes_of
from drkd_jax.data.config import PipelineConfig
from drkd_jax.data.sources import open_source
from drkd_jax.errors import UserError
from drkd_jax.fault_tolerance.checkpoint import Checkpoints
from drkd_jax.fault_tolerance.kept_distiller import load_distiller
from drkd_jax.report import figures
from drkd_jax.report.relations import similarity
from drkd_jax.report.two_models import row_entropies
from drkd_jax.step.sharding import data_mesh, put_everywhere
from drkd_jax.step.state import TrainState, split_module
from drkd_jax.types import Targets
from drkd_jax.weights.opening import load
from tests.data.test_turned import make_image as turned_image
from tests.training import tiny

CANVAS = (64, 96)
ROUNDED = 1e-4  # four decimals in the json


def write_run(folder, config, seed, distiller=None):
    """Writes the work folder of a run that was stopped at step 4."""
    settings = {key: value for key, value in config["student"].items() if key != "init"}
    source = open_source("shapes:6:1")
    student = models.init_detector(settings, len(source.categories), seed)
    parts = {"student": split_module(student, student.is_trained)}
    if distiller is not None:
        made = distiller(student)
        parts["distiller"] = split_module(made, made.is_trained)
    state = TrainState(
        jnp.int32(4),
        {name: part.params for name, part in parts.items()},
        {name: part.model_state for name, part in parts.items()},
        {},
    )
    about = {"config": config, "categories": [list(c) for c in source.categories]}
    checkpoints = Checkpoints(folder, 1)
    checkpoints.save(put_everywhere(state, data_mesh()), about)
    checkpoints.close()
    return student


@pytest.fixture(scope="module", autouse=True)
def small_drawings():
    """Draws with a tenth of the dots, which is enough for these tests."""
    with mock.patch.object(figures, "DPI", 12):
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The work folders of a teacher and of a run with this teacher."""
    teacher, student = (tmp_path_factory.mktemp(name) for name in ("teacher", "student"))
    config = tiny.config()
    config["data"]["canvases"] = (CANVAS,)
    config["student"]["test"] = {"score": 0.0, "max_out": 30}
    config["student"]["min_level"] = 3
    spec = write_run(teacher, config, 1).spec
    terms = {"pixel_relation": {"nodes": (4,), "student_scale": 1.0, "teacher_scale": 1.0}}
    config = {**config, "distill": terms, "teacher": {"checkpoint": str(teacher)}}
    settings = distill.distill_config(terms)

    def distiller(of):
        return distill.Distiller(settings, of.spec, spec, rngs=nnx.Rngs(5))

    write_run(student, config, 2, distiller)
    return student, teacher


@pytest.fixture(scope="module")
def image_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "a.png"
    image = np.random.default_rng(0).integers(0, 255, (48, 80, 3), np.uint8)
    cv2.imwrite(str(path), image)
    return path


@pytest.fixture(scope="module")
def result(folders, image_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    student, teacher = folders
    read, kept = visualize.read_sides, []
    call = [f"--weights={student}", f"--against={teacher}", "--which=last", f"--out={out}"]
    call += [f"--image={image_file}", "--score=0", "--max=6"]
    with mock.patch.object(
        visualize, "read_sides", lambda given: kept.append(read(given)) or kept[0]
    ):
        assert command_line.main(["visualize", *call]) == 0
    return out, json.loads((out / "relations.json").read_text()), kept[0]


@pytest.fixture
def swapped(result, monkeypatch):
    """Swaps both models, with their compiled programs."""
    monkeypatch.setattr(visualize, "read_sides", lambda _: result[2][::-1])


@pytest.fixture(scope="module")
def features(folders, image_file):
    """Features of both detectors and targets for the image, computed in another way."""
    image = cv2.imread(str(image_file))[..., ::-1]
    canvas = np.zeros((1, *CANVAS, 3), np.float32)
    canvas[0, :58, :96] = cv2.resize(np.ascontiguousarray(image), (96, 58))
    canvas[0, :58] = (canvas[0, :58] - 120) / 60
    reads = [read(load(folder, which="last")) for folder in folders]
    return reads, [read.detector.features(jnp.asarray(canvas)) for read in reads]


def test_every_level_has_two_drawings_and_the_rest_is_in_the_json(result):
    out, content, _ = result
    assert {path.name for path in out.iterdir()} == {
        "relations.json",
        "a_pixels_P3.png",
        "a_boxes_P3.png",
    }
    assert [each["step"] for each in content["models"].values()] == [4, 4]
    assert "student's graph units" in content["models"]["weights"]["units"]
    assert "teacher's graph units" in content["models"]["against"]["units"]
    (about,) = content["images"]
    assert (about["height"], about["width"]) == (48, 80)
    assert len(about["boxes"]) == 6
    scores = [box["score"] for box in about["boxes"]]
    assert scores == sorted(scores, reverse=True)
    for box in about["boxes"]:
        x, y, w, h = box["bbox"]
        assert -0.01 <= x < x + w <= 80.01
        assert -0.01 <= y < y + h <= 48.01


def test_its_drawings_are_no_images_to_the_next_call(result):
    with pytest.raises(UserError, match="2 earlier drawings are left out"):
        find_images([result[0]])
    assert cv2.imread(str(result[0] / "a_boxes_P3.png")) is not None


def test_its_matrices_are_those_of_the_default_distillation(result, features):
    _, content, _ = result
    (about,) = content["images"]
    reads, maps = features
    specs = [read.detector.spec for read in reads]
    distiller = distill.Distiller(
        distill.DistillConfig(pixel_relation=None), *specs, rngs=nnx.Rngs(0)
    )
    boxes = np.array([[box["bbox"] for box in about["boxes"]]], np.float32) * 1.2
    boxes[..., 2:] += boxes[..., :2]
    boxes *= [1, 58 / 57.6] * 2
    targets = Targets(
        sizes=np.array([[58, 96]], np.int32),
        boxes=boxes.astype(np.float32),
        labels=np.zeros((1, 6), np.int32),
        valid=np.ones((1, 6), bool),
        image_valid=np.ones(1, bool),
    )
    relation = about["levels"]["P3"]["relation"]
    psi = {}
    for side, named, own in zip(("student", "teacher"), ("weights", "against"), maps, strict=True):
        wanted = distill.relation_matrix(distiller, own, targets, side, 0)[0]
        psi[named] = np.array(relation[named])
        np.testing.assert_allclose(psi[named], wanted, atol=3e-3)
        entropy = row_entropies(np.asarray(wanted, np.float64))
        np.testing.assert_allclose(relation["row_entropy"][named], entropy, atol=3e-3)
    difference = psi["against"] - psi["weights"]
    np.testing.assert_allclose(relation["difference"], difference, atol=2e-4)
    distance = (difference**2).sum(1).mean()
    np.testing.assert_allclose(relation["distance"], distance, rtol=2e-4)


def test_its_maps_are_before_and_after_the_run_s_own_units(result, features, folders):
    _, content, _ = result
    reads, maps = features
    specs = reads[0].detector.spec, reads[1].detector.spec
    distiller = load_distiller(folders[0], 4, reads[0].config, specs)
    for pixel in content["images"][0]["levels"]["P3"]["pixels"]:
        point = pixel["row"], pixel["column"]
        for side, named, own in zip(
            ("student", "teacher"), ("weights", "against"), maps, strict=True
        ):
            targets = Targets(
                np.array([[58, 96]], np.int32),
                np.zeros((1, 1, 4), np.float32),
                np.zeros((1, 1), np.int32),
                np.zeros((1, 1), bool),
                np.ones(1, bool),
            )
            pair = distill.relation_features(distiller, own, side, 0, targets)
            for what, x in zip(("x", "phi"), pair, strict=True):
                wanted = similarity(np.asarray(x)[0, :8, :12], point)
                np.testing.assert_allclose(pixel[named][what], wanted, atol=ROUNDED)
                assert wanted[point] == pytest.approx(1)
        assert pixel["weights"]["phi"] != pixel["weights"]["x"]


def test_uniform_rows_have_entropy_1_and_a_choice_of_one_has_0():
    uniform = (1 - np.eye(4)) / 3
    np.testing.assert_allclose(row_entropies(uniform), 1)
    np.testing.assert_allclose(row_entropies(np.eye(4)[[1, 2, 3, 0]]), 0, atol=1e-12)


def instances(folder, *images):
    categories = [{"id": 1, "name": "disc"}]
    boxes = [
        {"id": i, "image_id": i, "category_id": 1, "bbox": [i, 2, 10, 10], "area": 100}
        for i in range(len(images))
    ]
    rows = [
        {"id": i, "file_name": name, "height": 48, "width": 80} for i, name in enumerate(images)
    ]
    content = {"images": rows, "annotations": boxes, "categories": categories}
    (folder / "boxes.json").write_text(json.dumps(content))
    return folder / "boxes.json"


def test_boxes_are_found_by_the_name_that_shares_most_folders(tmp_path):
    file = instances(tmp_path, "val/a.png", "train/a.png", "b.png")
    found = boxes_of(file, [tmp_path / "train" / "a.png", tmp_path / "b.png"])
    assert [each.boxes[0].tolist() for each in found] == [[1, 2, 11, 12], [2, 2, 12, 12]]
    assert found[0].names == ("disc",)
    with pytest.raises(UserError, match=r"a\.png: .* has 2 images of that name"):
        boxes_of(file, [tmp_path / "a.png"])
    with pytest.raises(UserError, match=r"c\.png: .* has no image of that name"):
        boxes_of(file, [tmp_path / "c.png"])


@pytest.mark.parametrize("exif", ["auto", "turned"])
def test_boxes_of_a_json_are_of_the_pixels_that_the_run_s_data_say(tmp_path, exif):
    pixels = np.zeros((48, 80, 3), np.uint8)
    pixels[:24] = 250  # above, as stored
    (tmp_path / "a.png").write_bytes(turned_image("png", 3, pixels))
    given = argparse.Namespace(boxes=instances(tmp_path, "a.png"), pixel=None, depth=None)
    read = PipelineConfig(1, (CANVAS,), 64, 96, exif=exif)
    (item,) = visualize._items(given, [tmp_path / "a.png"], tmp_path, read)
    assert bool(item.image[0, 0, 0]) == (exif == "auto")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--image={image_file}.jpg"], "a.png.jpg: cannot be read (No such file or directory)"),
        (["--image={image_file}", "--pixel=80,10"], "--pixel=80,10 lies outside of"),
        (["--image={image_file}", "--level=P9"], "--level=P9: both models have P3, P4, P5; or all"),
        (["--image={image_file}", "--boxes={image_file}"], "not valid json"),
        (["--image={image_file}", "--pixel=80"], "--pixel: '80' is not X,Y in pixels, as 320,240"),
        (["--image={image_file}", "--pixel=x,3"], "--pixel: 'x,3' is not X,Y in pixels"),
        (
            ["--image={image_file}", "--temperature=x"],
            "argument --temperature: 'x' is not a number",
        ),
        (["--image={image_file}", "--temperature=0"], "argument --temperature: 0 is not above 0"),
    ],
)
@pytest.mark.usefixtures("swapped")
def test_what_is_wrong_is_one_line(folders, image_file, tmp_path, capsys, arguments, words):
    student, teacher = folders
    call = [f"--weights={student}", f"--against={teacher}", f"--out={tmp_path}"]
    given = [each.format(image_file=image_file) for each in arguments]
    assert command_line.main(["visualize", *call, *given]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert words in said[0]


def test_a_run_whose_teacher_is_gone_is_named(folders, image_file, tmp_path, capsys):
    config = tiny.config(distilled=True)
    config["teacher"] = {"checkpoint": str(tmp_path / "gone")}
    config["student"]["min_level"] = 3
    write_run(tmp_path / "student", config, 2)
    call = [f"--weights={tmp_path / 'student'}", f"--against={folders[1]}", "--which=last"]
    call += [f"--image={image_file}", f"--out={tmp_path / 'out'}"]
    assert command_line.main(["visualize", *call]) == 2
    said = capsys.readouterr().err
    assert (
        f"{tmp_path / 'student'}: its config.teacher: {tmp_path / 'gone'}: no such folder" in said
    )


def test_images_are_read_with_the_depth_of_the_run_or_the_flag(
    result, folders, tmp_path, monkeypatch
):
    values = np.linspace(0, 4095, 48 * 80).reshape(48, 80).round().astype(np.uint16)
    assert cv2.imwrite(str(tmp_path / "a.png"), values)
    run, teacher = result[2]
    own = dataclasses.replace(run.read, pipeline=dataclasses.replace(run.read.pipeline, depth=12))
    monkeypatch.setattr(visualize, "read_sides", lambda _: (run._replace(read=own), teacher))
    draw, brightest = visualize.draw_pixels, []

    def drawn(path, shown, *others):
        brightest.append(int(shown.max()))
        draw(path, shown, *others)

    monkeypatch.setattr(visualize, "draw_pixels", drawn)
    call = [f"--weights={folders[0]}", f"--against={folders[1]}", f"--out={tmp_path / 'out'}"]
    call += [f"--image={tmp_path / 'a.png'}", "--score=0", "--max=6", "--pixel=1,1"]
    for more in ([], ["--depth=0"]):
        assert command_line.main(["visualize", *call, *more]) == 0
    assert brightest == [255, 15]


def test_two_runs_take_no_size(folders, image_file, tmp_path, capsys):
    student, teacher = folders
    call = [f"--weights={student}", f"--against={teacher}", "--which=last", f"--out={tmp_path}"]
    assert command_line.main(["visualize", *call, f"--image={image_file}", "--size=64x96"]) == 2
    assert "--size belongs to files of weights" in capsys.readouterr().err


@pytest.mark.usefixtures("swapped")
def test_an_image_with_too_few_boxes_still_has_its_pixels(folders, image_file, tmp_path, capsys):
    student, teacher = folders
    file = instances(tmp_path, image_file.name)
    call = [f"--weights={teacher}", f"--against={student}", f"--out={tmp_path / 'out'}"]
    call += [f"--image={image_file}", f"--boxes={file}", "--pixel=79,47", "--pixel=1,1"]
    assert command_line.main(["visualize", *call]) == 2
    printed = capsys.readouterr()
    assert "1 box in" in printed.err
    assert "a relation matrix needs 3: only its pixels are drawn" in printed.err
    content = json.loads((tmp_path / "out" / "relations.json").read_text())
    (about,) = content["images"]
    pixels = about["levels"]["P3"]["pixels"]
    assert [(each["row"], each["column"]) for each in pixels] == [(7, 11), (0, 0)]
    assert about["boxes"] == [{"bbox": [0, 2, 10, 10], "name": "disc"}]
    assert (tmp_path / "out" / "a_pixels_P3.png").is_file()
