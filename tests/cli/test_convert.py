"""`convert` and `export` as a user calls them: input and output files, exit codes."""

import json
import os
import pickle

import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file, save_file

from drkd_jax import models
from drkd_jax.__main__ import main
from drkd_jax.cli.detector import read
from drkd_jax.errors import UserError
from drkd_jax.fault_tolerance.checkpoint import Checkpoints
from drkd_jax.models.arrays import flatten
from drkd_jax.step.sharding import data_mesh, put_everywhere
from drkd_jax.step.state import new_state, split_module
from drkd_jax.weights.opening import load
from tests.training import tiny
from tests.weights.mmdet_config.configs import RETINANET
from tests.weights.small import foreign

CATEGORIES = [[1, "disc"], [2, "bitten disc"]]


@pytest.mark.parametrize("name", ["mmdet faster_rcnn", "torchvision retinanet"])
def test_there_and_back_gives_the_same_file(name, tmp_path, capsys):
    library = name.split()[0]
    _, theirs = foreign(name)
    counter = {"backbone.bn1.num_batches_tracked": np.zeros(1)}
    save_file({**theirs, **counter}, tmp_path / "theirs.safetensors")
    files = [str(tmp_path / f"{kind}.safetensors") for kind in ("theirs", "ours", "back")]
    account = tmp_path / "account.json"

    assert main(["convert", f"--from={library}", f"--json={account}", *files[:2]]) == 0
    printed = capsys.readouterr().out
    assert f"{len(theirs)} arrays used, 1 key skipped" in printed
    assert "convention = " in printed
    assert "backbone.eps = 1e-05: " in printed
    written = json.loads(account.read_text())
    assert sorted(written["used"]) == sorted(theirs)
    assert list(written["skipped"]) == list(counter)
    assert written["missing"] == written["unexpected"] == written["misshapen"] == {}

    assert main(["convert", f"--to={library}", *files[1:]]) == 0
    back = load_file(files[2])
    assert back.keys() == theirs.keys()
    for key, value in theirs.items():
        np.testing.assert_array_equal(back[key], value)


def refused(capsys, *arguments):
    assert main(["convert", *map(str, arguments)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    return said


class Evil:
    def __reduce__(self):
        return os.system, ("touch owned",)


def test_a_file_that_would_run_code_ends_with_exit_code_2(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    head = [0x1950A86A20F9469CFC6C, 1001, {}]
    (tmp_path / "evil.pth").write_bytes(
        b"".join(pickle.dumps(item, 2) for item in [*head, {"state_dict": Evil()}, []])
    )
    said = refused(capsys, "--from=mmdet", "evil.pth", "out.safetensors")
    assert "evil.pth: refused: it asks for posix.system" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.pth"]


def test_user_faults_are_one_line_and_exit_code_2(tmp_path, capsys):
    _, theirs = foreign("mmdet retinanet")
    file, out = tmp_path / "x.safetensors", tmp_path / "out.safetensors"
    save_file(theirs, file)
    assert "cannot be read" in refused(capsys, "--from=mmdet", tmp_path / "none.pth", out)
    assert "has to end in .safetensors" in refused(capsys, "--from=mmdet", file, tmp_path / "out")
    assert "those of mmdet" in refused(capsys, "--from=torchvision", file, out)
    assert "unknown setting 'chanels'" in refused(
        capsys, "--from=mmdet", "--set", "chanels=3", file, out
    )
    assert "KEY=VALUE" in refused(capsys, "--from=mmdet", "--set", "channels", file, out)
    assert "one of the arguments --from --to is required" in refused(capsys, file, out)
    short = {key: value for key, value in theirs.items() if "retina_cls.bias" not in key}
    save_file(short, file)
    said = refused(capsys, "--from=mmdet", file, out)
    assert "1 missing: bbox_head.retina_cls.bias (27,)" in said
    assert not out.exists()


def test_what_no_array_shows_is_said_for_the_other_library(tmp_path, capsys):
    _, theirs = foreign("mmdet retinanet")
    save_file(theirs, tmp_path / "theirs.safetensors")
    files = [str(tmp_path / f"{kind}.safetensors") for kind in ("theirs", "ours", "back")]
    settings = "anchors.scale=2.0", "delta_stds=[0.1, 0.1, 0.2, 0.2]", "test.score=0.3"
    assert main(["convert", "--from=mmdet", *(f"--set={s}" for s in settings), *files[:2]]) == 0
    capsys.readouterr()
    assert main(["convert", "--to=mmdet", *files[1:]]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "  its anchors.scale is 2.0, not 4.0" in said
    assert "  its delta_stds is (0.1, 0.1, 0.2, 0.2), not ()" in said
    assert "  its test.score is 0.3, not 0.05" in said
    assert not any(word in line for line in said for word in ("octaves", "test.nms", "images"))


def test_how_regions_and_images_are_read_is_said_for_the_other_library(tmp_path, capsys):
    _, theirs = foreign("mmdet faster_rcnn")
    save_file(theirs, tmp_path / "theirs.safetensors")
    files = [str(tmp_path / f"{kind}.safetensors") for kind in ("theirs", "ours", "back")]
    settings = ["roi_sampling=2", "roi_aligned=true", "backbone.pool=ceil"]
    settings += ["data.std=[1, 1, 1]", "data.channels=bgr", "data.resize=stretch"]
    assert main(["convert", "--from=mmdet", *(f"--set={s}" for s in settings), *files[:2]]) == 0
    capsys.readouterr()
    assert main(["convert", "--to=mmdet", *files[1:]]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "  its roi_sampling is 2, not 0" in said
    assert "  its stem's pool is ceil" in said
    std = "(58.395, 57.12, 57.375)"
    assert f"  its images' std is (1, 1, 1), not {std} (of colours from 0 to 255)" in said
    assert "  its images' channels is bgr, not rgb" in said
    assert "  its images are stretched to 800 pixels of height, 1333 of width" in said
    assert not any(word in line for line in said for word in ("roi_aligned", "mean"))


def test_another_library_s_conventions_are_not_written_under_its_names(tmp_path, capsys):
    _, theirs = foreign("mmdet retinanet")
    save_file(theirs, tmp_path / "x.safetensors")
    said = refused(
        capsys, "--to=torchvision", tmp_path / "x.safetensors", tmp_path / "y.safetensors"
    )
    assert "conventions of mmdet" in said


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A work folder with one checkpoint, from step 5."""
    config = tiny.config()
    settings = {key: value for key, value in config["student"].items() if key != "init"}
    student = models.init_detector(settings, 2, 7)
    state = new_state({"student": split_module(student, student.is_trained)}, optax.sgd(0.1))
    state = put_everywhere(state, data_mesh())
    state = type(state)(jnp.int32(5), state.params, state.model_state, state.opt_state)
    folder = tmp_path_factory.mktemp("run")
    checkpoints = Checkpoints(folder, 1)
    about = {"config": config, "categories": CATEGORIES, "numbers": {"AP": 0.25}}
    checkpoints.save_best(state, about)
    checkpoints.close()
    arrays = flatten(state.params["student"]) | flatten(state.model_state["student"])
    return folder, {name: np.asarray(value) for name, value in arrays.items()}


def test_the_student_alone_in_a_file(workdir, tmp_path, capsys):
    folder, arrays = workdir
    out = tmp_path / "student.safetensors"
    call = ["export", f"--workdir={folder}", "--format=safetensors", str(out)]
    assert main(call) == 0
    assert f"{len(arrays)} arrays of step 5, written to {out}" in capsys.readouterr().out
    weights = load(out)
    assert weights.about.categories == ((1, "disc"), (2, "bitten disc"))
    assert weights.about.source["step"] == 5
    assert weights.about.data["canvases"] == [[64, 96], [96, 64]]
    assert set(weights.arrays) == set(arrays)
    for name, value in arrays.items():
        np.testing.assert_array_equal(weights.arrays[name], value)


def test_the_student_alone_as_orbax(workdir, tmp_path, capsys):
    folder, arrays = workdir
    call = ["export", f"--workdir={folder}", "--format=orbax", str(tmp_path / "student")]
    assert main(call) == 0
    with ocp.StandardCheckpointer() as checkpointer:
        target = {name: np.empty(v.shape, v.dtype) for name, v in arrays.items()}
        found = checkpointer.restore(tmp_path / "student" / "student", target)
    for name, value in arrays.items():
        np.testing.assert_array_equal(found[name], value)
    about = json.loads((tmp_path / "student" / "about.json").read_text())
    assert about["settings"]["detector"] == "retinanet"
    run, export = load(folder), load(tmp_path / "student")
    assert export.categories == run.categories == ((1, "disc"), (2, "bitten disc"))
    assert (export.pixels, export.about.settings) == (run.pixels, run.about.settings)
    for name, value in run.arrays.items():
        np.testing.assert_array_equal(export.arrays[name], value)
    assert main(call) == 2
    assert "already exists" in capsys.readouterr().err


def test_an_exported_folder_with_a_changed_byte_is_not_read(workdir, tmp_path):
    folder, arrays = workdir
    out = tmp_path / "student"
    assert main(["export", f"--workdir={folder}", "--to=orbax", str(out)]) == 0
    about = json.loads((out / "about.json").read_text())
    assert about["checksums"]["student"].keys() == arrays.keys()
    file = max((out / "student").rglob("*"), key=lambda path: path.stat().st_size)
    whole = file.read_bytes()
    middle = len(whole) // 2
    file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :])
    with pytest.raises(UserError, match=r"student: not a whole export .* \(checksum\)\); copy"):
        load(out)
    file.write_bytes(whole)
    del about["checksums"]  # as older versions wrote it
    (out / "about.json").write_text(json.dumps(about))
    assert load(out).arrays.keys() == arrays.keys()


def test_what_a_network_reads_is_kept_and_can_be_set(tmp_path, capsys):
    _, theirs = foreign("mmdet retinanet")
    file, out = tmp_path / "mine_gn-all.safetensors", tmp_path / "ours.safetensors"
    save_file(theirs, file)
    assert main(["convert", "--from=mmdet", str(file), str(out)]) == 0
    assert "data.channels = bgr: mmdetection's on Caffe's" in capsys.readouterr().out
    for path in (file, out):
        data = read(load(path), (64, 96)).config["data"]
        assert (data["channels"], data["std"], data["resize"]) == ("bgr", (1.0, 1.0, 1.0), "mmdet")
    asked = ["--set=data.channels=rgb", "--set=data.std=[2,2,2]"]
    assert main(["convert", "--from=mmdet", *asked, str(file), str(out)]) == 0
    data = load(out).about.data
    assert (data["channels"], data["std"], data["mean"][0]) == ("rgb", [2, 2, 2], 103.53)
    assert "data.colour is not one of" in refused(
        capsys, "--from=mmdet", "--set=data.colour=1", file, out
    )


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("channels=gbr", "data.channels = 'gbr': one of rgb, bgr"),
        ("mean=5", "data.mean = 5: three numbers"),
        ("std=[1,0,1]", "every number must be above 0"),
        ("resize=detectron", "data.resize = 'detectron': one of mmdet, torchvision, stretch"),
    ],
)
def test_what_no_image_can_be_read_by_is_refused_at_conversion(said, words, tmp_path, capsys):
    _, theirs = foreign("mmdet retinanet")
    file, ours, out = (tmp_path / f"{name}.safetensors" for name in ("theirs", "ours", "out"))
    save_file(theirs, file)
    assert main(["convert", "--from=mmdet", str(file), str(ours)]) == 0
    capsys.readouterr()
    for source in (file, ours):
        told = refused(capsys, "--from=mmdet", f"--set=data.{said}", source, out)
        assert words in told
        assert str(source) in told
    assert not out.exists()


def test_the_file_that_is_read_is_not_written_over(tmp_path, capsys):
    _, theirs = foreign("mmdet retinanet")
    file, link = tmp_path / "x.safetensors", tmp_path / "link.safetensors"
    save_file(theirs, file)
    link.symlink_to(file)
    before = file.read_bytes()
    assert f"{file}: would overwrite the file that is read" in refused(
        capsys, "--from=mmdet", file, file
    )
    assert "would overwrite the file that is read" in refused(capsys, "--to=mmdet", file, link)
    out = tmp_path / "out.safetensors"
    said = refused(capsys, "--from=mmdet", f"--json={file}", file, out)
    assert f"--json={file}: would overwrite the file that is read" in said
    assert main(["export", f"--weights={file}", "--to=safetensors", str(file)]) == 2
    assert "would overwrite the file that is read" in capsys.readouterr().err
    assert file.read_bytes() == before
    assert main(["export", f"--weights={file}", "--to=safetensors", str(out)]) == 0
    printed = capsys.readouterr().out
    assert f"arrays, written to {out}" in printed  # a file has no step


def test_images_are_stretched_where_the_file_s_own_config_does(tmp_path):
    _, theirs = foreign("mmdet retinanet")
    file, out = tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors"
    test = "test_pipeline = [dict(type='Resize', scale=(90, 60), keep_ratio=False)]"
    save_file(theirs, file, metadata={"config": f"{RETINANET}\n{test}"})
    assert main(["convert", "--from=mmdet", str(file), str(out)]) == 0
    for path in (file, out):
        pipeline = read(load(path)).pipeline
        assert (pipeline.resize, pipeline.shorter, pipeline.longer) == ("stretch", 60, 90)
        assert pipeline.canvases == ((64, 96),)
    pipeline = read(load(file), (32, 64)).pipeline
    assert (pipeline.resize, pipeline.shorter, pipeline.longer) == ("mmdet", 32, 64)


def test_a_work_folder_converts_to_the_library_s_names(workdir, tmp_path, capsys):
    folder, arrays = workdir
    out = tmp_path / "theirs.safetensors"
    assert main(["convert", "--to=mmdet", str(folder), str(out)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "  its channels is 16, not 256" in said
    assert "  its head_convs is 1, not 4" in said
    assert any(line.startswith("  its backbone has group norms, of ") for line in said)
    mean = "(123.675, 116.28, 103.53) (of colours from 0 to 255)"
    assert f"  its images' mean is (120.0, 120.0, 120.0), not {mean}" in said
    size = "shorter side is 64 pixels, the longer one 96 at most, not 800 and 1333"
    assert f"  its images' {size}" in said
    theirs = load_file(out)
    assert len(theirs) == len(arrays)
    assert theirs["bbox_head.retina_cls.weight"].shape == (18, 16, 3, 3)
    assert "backbone.gn1.weight" in theirs


def test_a_file_is_not_scored_on_data_of_other_classes(workdir, tmp_path, capsys):
    folder, _ = workdir
    out = str(tmp_path / "student.safetensors")
    assert main(["export", f"--workdir={folder}", "--format=safetensors", out]) == 0
    capsys.readouterr()
    call = ["evaluate", f"--weights={out}", "--data=shapes:2:1", f"--out={tmp_path}"]
    assert main(call) == 2
    assert "which the detector does not have" in capsys.readouterr().err
