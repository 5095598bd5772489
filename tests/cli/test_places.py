"""Every command checks the place of its results before it starts."""

import importlib
import json

import pytest

from drkd_jax import __main__ as command_line

# The function that starts the work, and the arguments; {} stands for a path below a file.
COMMANDS = {
    "evaluate": ("drkd_jax.cli.evaluate.load_named", ["--workdir=x", "--out={}"]),
    "predict": ("drkd_jax.cli.predict.load_named", ["--workdir=x", "--out={}", "a.jpg"]),
    "convert": ("drkd_jax.cli.convert.load", ["--from=mmdet", "a.pth", "{}.safetensors"]),
    "convert --json": (
        "drkd_jax.cli.convert.load",
        ["--from=mmdet", "a.pth", "OK.safetensors", "--json={}"],
    ),
    "convert --to": (
        "drkd_jax.cli.convert.load",
        ["--to=mmdet", "run", "{}.safetensors"],
    ),
    "export": (
        "drkd_jax.cli.export.open_named",
        ["--workdir=x", "--format=safetensors", "{}.safetensors"],
    ),
    "export orbax": ("drkd_jax.cli.export.open_named", ["--workdir=x", "--format=orbax", "{}"]),
    "export stablehlo": (
        "drkd_jax.cli.export.read_named",
        ["--workdir=x", "--to=stablehlo", "{}.stablehlo"],
    ),
    "benchmark": (
        "drkd_jax.cli.benchmark.build_run",
        ["--config=configs/folder.py:tiny", "--random", "--json={}"],
    ),
    "benchmark cache": (
        "drkd_jax.cli.benchmark.build_run",
        ["--config=configs/folder.py:tiny", "--random", "--compilation-cache={}"],
    ),
    "crosscheck": ("crosscheck.command.write_cases", ["--json={}"]),
    "crosscheck --keep": ("crosscheck.command.write_cases", ["--keep={}"]),
    "prepare": ("drkd_jax.data.checking.check.check", ["shapes:2", "--check", "--out={}"]),
    "prepare --json": ("drkd_jax.data.checking.check.check", ["shapes:2", "--check", "--json={}"]),
    "visualize": (
        "drkd_jax.cli.visualize.read_sides",
        ["--weights=x", "--against=y", "--image=a.jpg", "--out={}"],
    ),
    "report": ("drkd_jax.report.runs.named_folders", ["x", "--out={}"]),
    "demo": ("drkd_jax.demo.run.demo", ["--tiny", "--workdir={}"]),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_place_below_a_file_is_refused_before_the_work(name, tmp_path, monkeypatch, capsys):
    work, arguments = COMMANDS[name]
    module, _, function = work.rpartition(".")

    def begun(*_, **__):
        raise AssertionError("the work was begun")

    monkeypatch.setattr(importlib.import_module(module), function, begun)
    (tmp_path / "file").write_text("old")
    place = tmp_path / "file" / "new"
    given = [a.format(place).replace("OK", str(tmp_path / "ok")) for a in arguments]
    assert command_line.main([name.split()[0], *given]) == 2
    said = capsys.readouterr().err
    assert str(place) in said
    assert "cannot be written (a part of the path is a file, not a folder)" in said
    assert len(said.splitlines()) == 1
    assert (tmp_path / "file").read_text() == "old"


def test_a_missing_parent_is_made(tmp_path, capsys):
    report = tmp_path / "a" / "b" / "check.json"
    arguments = ["prepare", "--check", "shapes:2", f"--json={report}", f"--out={tmp_path / 'c/d'}"]
    assert command_line.main(arguments) == 0
    assert json.loads(report.read_text())["images"] == 2
    assert list((tmp_path / "c" / "d").iterdir())


def test_a_full_disk_wherever_it_shows_is_one_line(monkeypatch, capsys):
    module = importlib.import_module("drkd_jax.cli.evaluate")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "main", full)
    assert command_line.main(["evaluate"]) == 2
    assert capsys.readouterr().err == "error: the disk is full\n"

    def missing(_):
        raise FileNotFoundError(2, "No such file or directory", "x")

    monkeypatch.setattr(module, "main", missing)
    with pytest.raises(FileNotFoundError):
        command_line.main(["evaluate"])


def test_the_home_folder_of_a_command(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert command_line.main(["evaluate", "--workdir=~/none", "--out=~/out"]) == 2
    assert f"{tmp_path}/none: no such folder" in capsys.readouterr().err
    assert (tmp_path / "out").is_dir()
