"""The command: a quick table from start to report."""

from __future__ import annotations

import dataclasses
import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

from benchmarks.gain.plan import Job, make_plan
from benchmarks.gain.recipes import ROOT
from benchmarks.gain.runner import Runner
from benchmarks.gain.table import read_table
from drkd_jax.fault_tolerance.same_run import teacher_digest
from drkd_jax.step.settings import set_keys
from drkd_jax.training.loop import train
from drkd_jax.training.teacher import load_teacher
from tests.benchmarks.test_gain_table import TABLES

TEXT = """
seeds = 5
budgets = [800]
[sets.boards]
train = "coco:{data}/images:{data}/train.json"
val = "coco:{data}/images:{data}/val.json"
[detectors.retinanet]
[teacher]
recipe = "configs/folder.py:teacher:{detector}"
[base]
plain = "configs/folder.py:student:{detector}"
distilled = "configs/folder.py:drkd:{detector}"
[arms.plain]
[arms.drkd]
distill = {}
"""


@pytest.fixture(scope="module")
def main():
    return runpy.run_path(str(ROOT / "benchmarks" / "gain.py"))["main"]


class Ended:
    """Replaces a process that has ended successfully."""

    returncode = 0

    def poll(self) -> int:
        return self.returncode


@pytest.fixture
def trained_here(monkeypatch):
    """Saves starts of Python: one student is trained by its command, the teacher in this process;
    the others, which have the same programs, get copies of these results.

    The value is a list of the started runs' names, and how they were started.
    """
    by_command, begun = Runner._train, []

    def quicker(self: Runner, job: Job, slot: int) -> object:
        assert self.cores == ()
        if job.name.endswith("drkd/2/seed0"):
            begun.append((job.name, "command"))
            return by_command(self, job, slot)
        if job.is_student:
            begun.append((job.name, "copied"))
            twins = [each for each in self.jobs if each.summary()]
            shutil.copytree(twins[-1 if job.teacher else 0].folder, job.folder)
            (job.folder / "config.json").write_text(json.dumps(job.config))
        else:
            begun.append((job.name, "here"))
            self.note(job)
            train(job.config, job.folder)
        return Ended()

    monkeypatch.setattr(Runner, "_train", quicker)
    return begun


def test_quick_from_nothing_to_the_report(main, trained_here, tmp_path, monkeypatch, capsys):
    (tmp_path / "boards.toml").write_text(TEXT)
    command = [str(tmp_path / "boards.toml"), "--quick", f"--workdir={tmp_path / 'gain'}"]
    assert main(command) == 0, capsys.readouterr().err
    assert [how for _, how in trained_here] == ["here", "copied", "command", "copied", "copied"]
    folder = tmp_path / "gain" / "boards-quick"
    results = json.loads((folder / "gain.json").read_text())
    assert [run["state"] for run in results["runs"]] == ["done"] * 4
    (row,) = [row for row in results["comparisons"] if "difference" in row]
    assert (row["arm"], row["paired_seeds"]) == ("drkd", [0, 1])
    assert row["difference"]["AP"]["mean"] == pytest.approx(
        row["scores"]["AP"]["mean"] - results["comparisons"][0]["scores"]["AP"]["mean"], abs=1e-12
    )
    assert results["arms"]["drkd"] == {"distilled": True, "overrides": {}}
    student = folder / "shapes/retinanet/drkd/2/seed0"
    config = json.loads((student / "config.json").read_text())
    assert config["teacher"]["checkpoint"] == str(folder / "teachers/shapes/retinanet")
    told = json.loads((student / "summary.json").read_text())["teacher_weights"]
    assert told == teacher_digest(load_teacher(config["teacher"], 0, 0).arrays)
    taught = json.loads((folder / "teachers/shapes/retinanet/summary.json").read_text())
    assert taught["teacher_weights"] is None
    assert not (student / "checkpoints").exists()
    assert (folder / "teachers/shapes/retinanet/checkpoints").is_dir()
    assert (folder / "gain.png").read_bytes().startswith(b"\x89PNG")
    assert "4 of 4 runs are done" in (folder / "gain.md").read_text()
    assert main(command) == 0
    assert len(trained_here) == 5


@pytest.mark.parametrize("name", ["shapes", "deeppcb", "ablation"])
def test_the_command_line_makes_the_config_that_is_compared_with(name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)  # the current folder of the command
    table = read_table(TABLES / f"{name}.toml")
    whole = tuple(dataclasses.replace(each, labels=None) for each in table.sets)
    plan = make_plan(dataclasses.replace(table, sets=whole), tmp_path, Path("data"))
    for job in (plan.jobs[0], *plan.jobs[-len(table.arms) :]):
        words = [word for word in job.command("programs")[2:] if word.startswith("--config")]
        monkeypatch.setattr(sys, "argv", ["train.py", *words])  # the source of overrides
        values = flags.FlagValues()
        holder = config_flags.DEFINE_config_file("config", flag_values=values)
        values(sys.argv)
        assert holder.value.to_dict() | _models(holder.value) == job.config


def _models(config):
    """The models of a config, without empty keys."""
    parts = {name: config[name].to_dict() for name in ("student", "teacher") if config[name]}
    return {name: set_keys(part) for name, part in parts.items()}


def test_what_the_user_can_mend_is_said_in_one_line(main, tmp_path, capsys):
    (tmp_path / "boards.toml").write_text(TEXT)
    assert main([str(tmp_path / "none.toml")]) == 2
    assert main([str(tmp_path / "boards.toml"), f"--workdir={tmp_path}"]) == 2
    assert main([str(tmp_path / "boards.toml"), "--seeds=a"]) == 2
    assert main([str(tmp_path / "boards.toml"), "--seeds=4-0"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert [line.startswith("error: ") for line in errors] == [True] * 4
    assert "--data=DIR" in errors[1]
    assert "--seeds=4-0" in errors[3]


def test_the_home_folder_may_be_written_as_in_every_command(main, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "boards.toml").write_text(TEXT)
    assert main(["~/boards.toml", "--quick", "--report", "--workdir=~/gain"]) == 0
    assert (tmp_path / "gain" / "boards-quick" / "gain.md").is_file()
