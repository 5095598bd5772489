"""``demo --tiny``: one complete run without stand-ins; and the effect of its arguments."""

from __future__ import annotations

import json

import pytest

from configs import demo as recipe
from drkd_jax import __main__ as program
from drkd_jax.cli import demo
from drkd_jax.recipes import finding


def test_tiny_demo_leaves_everything_behind_and_goes_on(tmp_path, capsys):
    arguments = ["demo", "--tiny", "--detector=retinanet", f"--workdir={tmp_path}"]
    assert program.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "DRKD student" in printed
    assert "no claim of a gain rests on this run" in printed
    results = json.loads((tmp_path / "results.json").read_text())
    assert [run["name"] for run in results["runs"]] == ["teacher", "plain student", "DRKD student"]
    assert results["runs"][1]["parameters"] == results["runs"][2]["parameters"]
    assert results["command"].startswith("python -m drkd_jax demo --tiny")
    for name in ("report.html", "results.md", *results["figures"]):
        assert (tmp_path / name).stat().st_size > 1000
    assert len(results["figures"]) == 4

    checkpoint = next((tmp_path / "drkd" / "checkpoints").iterdir())
    written = checkpoint.stat().st_mtime_ns
    assert program.main(arguments) == 0
    assert checkpoint.stat().st_mtime_ns == written
    assert "was finished" in capsys.readouterr().err
    again = json.loads((tmp_path / "results.json").read_text())
    assert [run["scores"] for run in again["runs"]] == [run["scores"] for run in results["runs"]]


def options(*argv: str):
    return demo._parser().parse_args(list(argv))


@pytest.mark.parametrize("detector", ["retinanet", "faster_rcnn"])
def test_shorter_runs_keep_their_shape(detector, monkeypatch):
    long = recipe.get_config(f"student:{detector}")
    short = demo._config("student", options(f"--detector={detector}", "--steps=45"))
    assert short.train.steps == 45
    assert short.student.to_dict() == long.student.to_dict()
    for old, new in zip(long.train.decay_at, short.train.decay_at, strict=True):
        assert new == old if old < 1 else new == pytest.approx(old * 45 / long.train.steps)
    taught = recipe.get_config(f"drkd:{detector}")
    taught.distill.warmup_steps = 2 * taught.train.steps // 5
    monkeypatch.setattr(finding, "load_recipe", lambda _: taught)
    assert demo._config("drkd", options("--steps=45")).distill.warmup_steps == 18
    monkeypatch.undo()
    asked = options(f"--detector={detector}", "--train-teacher", "--steps=45")
    teacher = demo._config("teacher", asked)
    assert teacher.train.steps == recipe.get_config(f"teacher:{detector}").train.steps


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--steps=0", "--steps"),
        ("--teacher-steps=9", "--train-teacher"),
        ("--detector=yolo", "yolo"),
        ("--bogus", "--bogus"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(argument, words, capsys):
    assert program.main(["demo", argument]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error
    assert "\n" not in error
