"""A run with weights by name: recorded by their names, continued without a network."""

import hashlib

import pytest

from drkd_jax.errors import UserError
from drkd_jax.fault_tolerance.same_run import check_same_run
from drkd_jax.recipes.coco_2x import BACKBONE_INIT, TEACHERS
from drkd_jax.training.setup import build_run
from drkd_jax.training.starting import check_files
from drkd_jax.weights.fetch import download
from drkd_jax.weights.fetch.by_name import PUBLISHED, short_name
from drkd_jax.weights.ours import About, write_ours
from tests.training import tiny
from tests.weights.fetch.server import serving
from tests.weights.small import random_arrays


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    monkeypatch.setenv(download.CACHE, str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")


def test_a_run_goes_on_without_the_server_that_it_began_with(tmp_path):
    config = tiny.config()
    settings = {key: value for key, value in config["student"].items() if key != "init"}
    arrays = random_arrays("detector", settings, 2)
    file = tmp_path / "start.safetensors"
    write_ours(file, arrays, About("detector", settings, 2, ((1, "a"), (2, "b")), {}, {}))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    with serving() as files:
        files.content["/start.safetensors"] = file.read_bytes()
        name = f"{files.url}/start.safetensors#sha256={digest[:8]}"
        config["student"]["init"] = name
        run = build_run(config)
    assert len(files.asked) == 1
    assert run.student_origin.startswith(f"{name} ({tmp_path / 'cache'}")
    assert run.config["student"]["init"] == name
    config["train"]["steps"] = 16
    again = build_run(config)
    assert again.student_origin == run.student_origin
    check_same_run(run.config, again.config, tmp_path)


def test_the_recipes_files_are_published_ones_and_a_missing_one_says_its_name():
    for path in (BACKBONE_INIT, *TEACHERS.values()):
        assert short_name(path.removeprefix("weights/")) in PUBLISHED
    values = {
        "student": {"init": "nowhere/resnet50-0676ba61.pth"},
        "teacher": {"checkpoint": "nowhere/my_teacher.pth"},
    }
    with pytest.raises(UserError, match=r"weights; --config\.student\.init=torchvision:resnet50 f"):
        check_files(values)


def test_published_addresses_are_whole():
    for name, address in PUBLISHED.items():
        url, sum_ = download.parse_address(address)
        assert url.endswith(f"-{sum_}.pth")
        assert len(sum_) == 8
        assert short_name(url.rsplit("/", 1)[1]) == name


def test_a_name_that_leads_nowhere_is_said_with_its_key():
    name = "http://127.0.0.1:9/x.pth#sha256=0123abcd"
    with pytest.raises(UserError, match=r"^config\.student\.init = http://127\.0\.0\.1:9/x\.pth: "):
        check_files({"student": {"init": name}, "teacher": None})
