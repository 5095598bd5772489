"""The command itself: a quick table from nothing to its report."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

GAIN = Path(__file__).resolve().parents[2] / "benchmarks" / "gain.py"
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
distill.instance_feature.weight = 0.25
"""


@pytest.fixture(scope="module")
def main():
    return runpy.run_path(str(GAIN))["main"]


def test_quick_from_nothing_to_the_report(main, tmp_path, monkeypatch, capsys):
    """Real trainings, as a person calls them: the programs are those of the other tests."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    (tmp_path / "boards.toml").write_text(TEXT)
    command = [str(tmp_path / "boards.toml"), "--quick", f"--workdir={tmp_path / 'gain'}"]
    assert main(command) == 0, capsys.readouterr().err
    folder = tmp_path / "gain" / "boards-quick"
    results = json.loads((folder / "gain.json").read_text())
    assert [run["state"] for run in results["runs"]] == ["done"] * 4
    config = json.loads((folder / "shapes/retinanet/drkd/2/seed1/config.json").read_text())
    assert config["distill"]["instance_feature"]["weight"] == 0.25
    assert config["teacher"]["checkpoint"] == str(folder / "teachers/shapes/retinanet")
    (row,) = [row for row in results["comparisons"] if "difference" in row]
    assert (row["arm"], row["paired_seeds"]) == ("drkd", [0, 1])
    assert (folder / "gain.png").read_bytes().startswith(b"\x89PNG")
    assert "4 of 4 runs are done" in (folder / "gain.md").read_text()
    before = (folder / "shapes/retinanet/drkd/2/seed1/train.log").read_bytes()
    assert main(command) == 0
    assert (folder / "shapes/retinanet/drkd/2/seed1/train.log").read_bytes() == before


def test_what_the_user_can_mend_is_said_in_one_line(main, tmp_path, capsys):
    (tmp_path / "boards.toml").write_text(TEXT)
    assert main([str(tmp_path / "none.toml")]) == 2
    assert main([str(tmp_path / "boards.toml"), f"--workdir={tmp_path}"]) == 2
    assert main([str(tmp_path / "boards.toml"), "--seeds=a"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert [line.startswith("error: ") for line in errors] == [True] * 3
    assert "--data=DIR" in errors[1]
