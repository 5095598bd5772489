"""A run of a time when images were called pictures goes on, and is evaluated and reported."""

import json
import re

import pytest

from drkd_jax import __main__ as program
from drkd_jax.report.runs import read_run
from drkd_jax.training import loop
from drkd_jax.weights.ours import read_checkpoint
from tests.training import tiny

OLD = {
    "tensorboard_images": "tensorboard_pictures",
    "max_images": "max_pictures",
    "images_per_device": "pictures_per_device",
    "image_digest": "picture_digest",
    "images": "pictures",
}


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """The config of a finished run, and its folder, in which every name is an old one."""
    config = tiny.config(distilled=True, steps=2, checkpoint_every=2, decay_at=(), warmup_steps=1)
    config["data"]["canvases"] = ((64, 96),)
    config["train"]["tensorboard_images"] = 1
    config["eval"]["max_images"] = 4
    config["distill"]["images_per_device"] = 4
    workdir = tmp_path_factory.mktemp("old") / "run"
    loop.train(config, workdir)
    changed = set()
    for path in (*workdir.glob("*.json"), *workdir.glob("*/2/about/metadata")):
        if path.name in ("detections.json", "about.json"):
            continue
        text, count = re.subn(
            rf'"({"|".join(OLD)})"(?=:)', lambda key: f'"{OLD[key[1]]}"', path.read_text()
        )
        path.write_text(text)
        if count:
            changed.add(path.relative_to(workdir).as_posix())
    assert changed == {
        *("config.json", "eval.json"),
        *("best/2/about/metadata", "checkpoints/2/about/metadata"),
    }
    return config, workdir


def test_it_is_read(old):
    config, workdir = old
    run = read_run("run", workdir)
    assert (run.images, run.config["eval"]) == (4, config["eval"])
    for which in ("best", "last"):
        _, about, _ = read_checkpoint(workdir, which)
        assert about["config"]["distill"]["images_per_device"] == 4


def test_it_is_evaluated(old, capsys):
    _, workdir = old
    assert program.main(["evaluate", f"--workdir={workdir}"]) == 0
    assert "will replace" not in capsys.readouterr().err  # the same 4 images of the same step
    assert json.loads((workdir / "eval.json").read_text())["images"] == 4


def test_it_is_reported(old, tmp_path):
    _, workdir = old
    out = tmp_path / "a.html"
    assert program.main(["report", f"a={workdir}", f"--out={out}"]) == 0
    assert "(4 images, " in out.read_text()


def test_it_goes_on(old):
    config, workdir = old
    longer = {**config, "train": {**config["train"], "steps": 3}}
    summary = loop.train(longer, workdir)
    assert summary["steps"] == 3
    assert not [text for text in summary["warnings"] if "checkpoint" in text]  # no difference
    assert "pictures" not in (workdir / "config.json").read_text()
