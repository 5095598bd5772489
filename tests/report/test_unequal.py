"""Runs scored on different numbers of images, and folders that are no runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from drkd_jax import __main__ as program
from tests.report.made import cells, leave_run

WHOLE, FEWER = 12, 4
DATA = f"shapes:{WHOLE}:1"


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """A plain run, and a distilled one: scored on all images, and on the first few."""
    root = tmp_path_factory.mktemp("unequal")
    return {
        "plain": leave_run(root / "plain", 3.0, DATA),
        "all": leave_run(root / "all", 2.0, DATA),
        "few": leave_run(root / "few", 2.0, DATA, FEWER),
        # As `train.py` leaves it where its config says so.
        "config": leave_run(root / "config", 2.0, DATA, FEWER, eval={"max_images": FEWER}),
    }


def report(tmp_path: Path, *named: str) -> str:
    out = tmp_path / "report.html"
    assert program.main(["report", *named, f"--out={out}"]) == 0
    return out.read_text()


def interval(cell: str) -> tuple[float, float, float]:
    value, low, high = re.fullmatch(r"(\S+) \((\S+) to (\S+)\)", cell).groups()
    return float(value), float(low), float(high)


@pytest.mark.parametrize("which", ["few", "config"])
def test_compared_on_the_images_of_both(tmp_path, runs, capsys, which):
    text = report(tmp_path, f"plain={runs['plain']}", f"drkd={runs[which]}")
    told = (
        f"The runs were scored on different numbers of images (plain {WHOLE}, drkd {FEWER}): "
        f"differences, intervals, classes and images are of the first {FEWER}, on which all "
    )
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {told}")
    assert f"--workdir={runs[which]} --data={DATA} --max-images={WHOLE}` scores drkd" in said
    assert told in text
    rows = cells(text, f"Points more than plain on the first {FEWER} images")
    value, low, high = interval(rows[1][1])
    assert low <= value <= high
    # The same numbers as of a plain run that was scored on the first few itself.
    own = leave_run(tmp_path / "own", 3.0, DATA)
    found = json.loads((own / "detections.json").read_text())
    again = report(tmp_path, f"plain={cut(own, found)}", f"drkd={runs['few']}")
    assert "different numbers" not in again
    assert cells(again, "Points more than plain")[1:] == rows[1:]


def cut(folder: Path, found: list[dict]) -> Path:
    """Scores a run on the first few images; the report reads its numbers again."""
    scored = json.loads((folder / "eval.json").read_text())
    (folder / "eval.json").write_text(json.dumps({**scored, "images": FEWER}))
    (folder / "detections.json").write_text(json.dumps(found))
    return folder


def test_numbers_stay_each_runs_own_and_say_of_how_many_images(tmp_path, runs):
    text = report(tmp_path, f"plain={runs['plain']}", f"drkd={runs['few']}")
    rows = {row[0].split()[0]: row[1:] for row in cells(text, "COCO's numbers")[1:]}
    plain, drkd = (json.loads((runs[name] / "eval.json").read_text()) for name in ("plain", "few"))
    # The interval of the first few says nothing of the number that is of all.
    assert rows["AP"][0] == f"{100 * plain['AP']:.1f}"
    assert rows["AP"][1].startswith(f"{100 * drkd['AP']:.1f} (")
    assert rows["images"] == [str(WHOLE), str(FEWER)]
    assert "objects" not in cells(text, "AP / recall by size")[0]


def test_without_detections_no_difference_is_told(tmp_path, runs, capsys):
    bare = leave_run(tmp_path / "bare", 2.0, DATA, FEWER)
    (bare / "detections.json").unlink()
    text = report(tmp_path, f"plain={runs['plain']}", f"drkd={bare}")
    assert "Points more than" not in text
    assert f"(of {FEWER} and {WHOLE} images)." in text
    assert "they are not compared" in capsys.readouterr().err


def test_nothing_is_said_of_equal_numbers_of_images(tmp_path, runs, capsys):
    text = report(tmp_path, f"plain={runs['plain']}", f"drkd={runs['all']}")
    assert capsys.readouterr().err == ""
    assert "different numbers" not in text
    value, low, high = interval(cells(text, "Points more than plain")[1][1])
    assert low <= value <= high


LEFT = {
    "": "is no work folder of train.py, name one that is",
    "config.json": "holds no evaluated run (no eval.json with an AP); let training end",
    "checkpoints/": "let training end, or run `python -m drkd_jax evaluate --workdir=",
}


@pytest.mark.parametrize("left", LEFT)
def test_a_folder_without_a_score_is_called_what_it_is(tmp_path, capsys, left):
    folder = tmp_path / "run"
    folder.mkdir()
    if left.endswith("/"):
        (folder / left).mkdir()
    elif left:
        (folder / left).write_text("{}")
    assert program.main(["report", str(folder), f"--out={tmp_path / 'x.html'}"]) == 2
    said = capsys.readouterr().err
    assert f"{folder}: " in said
    assert LEFT[left] in said
    assert ("drkd_jax evaluate" in said) == (left == "checkpoints/")
