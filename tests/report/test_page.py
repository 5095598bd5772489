"""The page about finished runs: self-contained, true to its files, safe against names."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from drkd_jax import __main__ as program
from drkd_jax.errors import UserError
from drkd_jax.report import relations
from drkd_jax.report.found import Found, Looked, look, most_changed
from drkd_jax.report.markup import tag
from drkd_jax.report.page import page
from drkd_jax.report.runs import named_folders, open_truth, read_run, read_runs
from tests.report.made import VAL, cells, leave_run
from tests.training import tiny

VOID = {"img", "input", "meta", "br"}
HOSTILE = '"><script>alert(1)</script><img src=http://evil onerror=x>'


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    drkd = {"teacher": {"checkpoint": "there"}, "distill": {"warmup_steps": 3}}
    return [leave_run(root / "plain", 6.0), leave_run(root / "drkd", 1.0, **drkd)]


@pytest.fixture(scope="module")
def whole(folders) -> str:
    return page(read_runs([(f.name, f) for f in folders]), draws=20)


class Reader(HTMLParser):
    """Parses elements with their attributes; fails if they do not close in order."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, name, attributes):
        self.elements.append((name, dict(attributes)))
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for each, attributes in self.elements if each == name]


def check_harmless(text: str) -> Reader:
    """Checks that the page loads nothing and runs nothing."""
    read = Reader(text)
    names = {name for name, _ in read.elements}
    assert not names & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for _, attributes in read.elements:
        assert not [key for key in attributes if key.startswith("on")]
        assert (attributes.get("href") or "#").startswith("#")
        assert (attributes.get("src") or "data:").startswith("data:")
    sheet = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert sheet is not None
    assert "url(" not in sheet[1]
    assert "@import" not in sheet[1]
    return read


def test_one_file_that_loads_nothing_and_runs_nothing(whole):
    read = check_harmless(whole)
    assert "prefers-color-scheme: dark" in whole
    assert all(image["alt"] for image in read.all("img"))
    ids = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {label["for"] for label in read.all("label")} <= set(ids)
    assert {link["href"] for link in read.all("a")} <= {f"#{name}" for name in ids}


def test_one_view_of_each_image_is_shown(whole):
    buttons = Reader(whole).all("input")
    groups = {button["name"] for button in buttons}
    assert len(groups) == len(Reader(whole).all("img")) > 0
    for group in groups:
        own = [button for button in buttons if button["name"] == group]
        assert len(own) == 3  # ground truth and two runs
        assert sum("checked" in button for button in own) == 1


def test_numbers_are_those_of_eval_json(folders, whole):
    rows = {row[0].split()[0]: row[1:] for row in cells(whole, "COCO's numbers")[1:]}
    for i, folder in enumerate(folders):
        scored = json.loads((folder / "eval.json").read_text())
        assert len(rows) == 12
        for key, row in rows.items():
            wanted = "-" if scored[key] < 0 else f"{100 * scored[key]:.1f}"
            assert row[i].split()[0] == wanted
    gap = float(cells(whole, "Points more than plain")[1][1].split()[0])
    plain, drkd = (float(cell.split()[0]) for cell in rows["AP"])
    assert gap == pytest.approx(drkd - plain, abs=0.11)
    assert "it was &amp; it is" in whole


def test_settings_that_differ_are_listed(whole):
    assert [row[0] for row in cells(whole, "Settings that differ")] == [
        "key",
        "distill",
        "teacher",
    ]


def test_hostile_names_stay_text(tmp_path):
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.png"), np.full((40, 60, 3), 128, np.uint8))
    box = {"image_id": 1, "category_id": 1, "area": 400, "iscrowd": 0}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 40, "width": 60}],
        "categories": [{"id": 1, "name": HOSTILE}],
        "annotations": [
            {**box, "id": 1, "bbox": [5, 5, 20, 20]},
            {**box, "id": 2, "bbox": [30, 10, 20, 20]},
        ],
    }
    (tmp_path / "val.json").write_text(json.dumps(content))
    val = f"coco:{tmp_path / 'images'}:{tmp_path / 'val.json'}"
    one, two = leave_run(tmp_path / "one", 0.1, val), leave_run(tmp_path / "two", 30.0, val)
    (two / "summary.json").write_text(json.dumps({"warnings": [HOSTILE]}))
    text = page(read_runs([(HOSTILE, one), ("two", two)]), title=HOSTILE, draws=5)
    read = check_harmless(text)
    assert len(read.all("img")) == 1
    assert "&lt;script&gt;" in text


def test_one_run_alone_shows_its_first_images(folders):
    text = page(read_runs([("alone", folders[0])]), draws=5)
    assert len(check_harmless(text).all("img")) == 3
    assert "Points more than" not in text


def test_elements_escape_what_they_are_given():
    assert tag("p", "<b>", tag("i", "&"), class_='"') == (
        '<p class="&quot;">&lt;b&gt;<i>&amp;</i></p>'
    )


def test_images_are_sorted_by_how_many_more_objects_are_found():
    def looked(place: int, objects: int, first: int, second: int) -> Looked:
        truth = Found(np.zeros((objects, 4)), np.zeros(objects, int))
        return Looked(place, truth, (), (first, second))

    images = [
        looked(0, 5, 1, 2),
        looked(1, 9, 0, 4),
        looked(2, 4, 0, 4),
        looked(3, 3, 2, 2),
        looked(4, 3, 3, 0),
        looked(5, 3, 1, 0),
        looked(6, 4, 0, 4),
    ]
    helped, hurt = most_changed(images, 0, 1, 3)
    assert [image.place for image in helped] == [2, 6, 1]
    assert [image.place for image in hurt] == [4, 5]


def test_found_objects_are_counted_among_the_best_boxes(folders):
    runs = read_runs([(f.name, f) for f in folders])
    truth, _ = open_truth(runs[0])
    assert truth is not None
    images = look(runs, truth)
    assert [len(p.truth.boxes) for p in images] == [
        n for i in range(6) if (n := truth.source.meta(i).num_boxes)
    ]
    assert all(len(found.boxes) <= len(p.truth.boxes) for p in images for found in p.found)
    assert sum(p.right[1] for p in images) > sum(p.right[0] for p in images)


def test_without_the_data_numbers_and_curves_remain(tmp_path):
    folder = leave_run(tmp_path / "run", 1.0)
    for name in ("eval.json", "config.json"):
        content = (folder / name).read_text().replace(VAL, "coco:gone:gone.json")
        (folder / name).write_text(content)
    other = tmp_path / "other"
    other.mkdir()
    (other / "eval.json").write_text((folder / "eval.json").read_text())
    text = page(read_runs([("run", folder), ("other", other)]))
    read = check_harmless(text)
    assert "cannot be read any more" in text
    assert "no detections.json" in text
    assert read.all("img") == []
    assert len(read.all("svg")) >= 2
    assert cells(text, "COCO's numbers")[1][0].startswith("AP ")
    assert cells(text, "Points more than run")[1][1] == "+0.0"


def test_runs_of_different_images_are_refused(tmp_path, folders, capsys):
    strange = leave_run(tmp_path / "strange", 1.0, "shapes:3:2")
    out = tmp_path / "report.html"
    assert program.main(["report", str(folders[0]), str(strange), f"--out={out}"]) == 2
    said = capsys.readouterr().err
    for words in (str(strange), str(folders[0]), "shapes:3:2", VAL, "evaluate --workdir"):
        assert words in said
    assert len(said.splitlines()) == 1
    assert not out.exists()


def test_a_class_that_the_images_do_not_list_is_left_out(tmp_path, folders):
    """A training writes such detections if a class of its images is not in the validation set."""
    folder = leave_run(tmp_path / "run", 6.0)
    found = json.loads((folder / "detections.json").read_text())
    more = [{**row, "category_id": 99, "score": 0.99} for row in found]
    (folder / "detections.json").write_text(json.dumps(more + found))
    text = page(read_runs([("plain", folders[0]), ("run", folder)]), draws=5)
    assert cells(text, "Points more than plain")[1][1] == "+0.0 (+0.0 to +0.0)"
    assert "its eval.json says" not in text


def test_relations_are_those_of_an_image_that_was_scored(tmp_path, monkeypatch):
    """`evaluate --data=OTHER` scores other images than the run's config names."""
    drkd = {"teacher": {"checkpoint": "there"}, "distill": {"warmup_steps": 3}}
    folder = leave_run(tmp_path / "run", 1.0, **drkd)
    (folder / "checkpoints").mkdir()
    scored = json.loads((folder / "eval.json").read_text())
    (folder / "eval.json").write_text(json.dumps({**scored, "data": "shapes:4:2"}))
    (folder / "detections.json").write_text("[]")
    asked = []

    def see(source, config, workdir):
        asked.append((source.spec, config["data"]["val"], config["data"]["train"], workdir))
        raise UserError("that is all")

    monkeypatch.setattr(relations, "see_relations", see)
    out = tmp_path / "x.html"
    assert program.main(["report", f"a={folder}", "--relations=a", f"--out={out}"]) == 2
    assert asked == [("shapes:4:2", "shapes:4:2", "shapes:4", folder)]


def test_the_command_writes_the_page(tmp_path, folders, capsys):
    out = tmp_path / "new" / "report.html"
    named = f"old={folders[0]}"
    arguments = [named, str(folders[1]), "--reference=drkd", f"--out={out}", "--title=A title"]
    assert program.main(["report", *arguments]) == 0
    text = out.read_text()
    assert "<h1>A title</h1>" in text
    assert "Points more than drkd" in text
    assert str(out) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{}/plain", "--reference=best"], "--reference=best"),
        (["{}/plain", "--relations=plain"], "is not a distilled run"),
        (["{}/drkd", "--relations=drkd"], "has no checkpoints"),
        (["{}/nowhere"], "nowhere: there is no such folder"),
        (["{}"], "is no work folder of train.py, name one that is; runs in it: drkd, plain"),
        (["a={}/plain", "a={}/drkd"], "two runs are called a"),
        (["{}/plain"] * 7, "7 runs"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(arguments, words, tmp_path, folders, capsys):
    given = [argument.format(folders[0].parent) for argument in arguments]
    assert program.main(["report", *given, f"--out={tmp_path / 'x.html'}"]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.splitlines()) == 1


def test_a_run_whose_teacher_is_gone_is_named(tmp_path, capsys):
    config = tiny.config(distilled=True)
    config["teacher"] = {"checkpoint": "gone"}
    config["data"]["val"] = VAL
    folder = leave_run(tmp_path / "run", 1.0, **config)
    (folder / "checkpoints").mkdir()
    call = ["report", str(folder), "--relations=run", f"--out={tmp_path / 'x.html'}"]
    assert program.main(call) == 2
    said = capsys.readouterr().err
    assert f"--relations=run: {folder}: config.teacher.checkpoint = gone: not there" in said
    assert "student.init" not in said


@pytest.mark.parametrize("content", ["{", "{}", '[{"score": 1}]'])
def test_a_broken_file_is_named(tmp_path, content):
    folder = leave_run(tmp_path / "run", 1.0)
    (folder / "detections.json").write_text(content)
    with pytest.raises(UserError, match=r"detections\.json"):
        read_run("run", folder)


def test_folders_of_one_name_are_called_by_what_differs():
    paths = ["runs/plain/seed0", "runs/drkd/seed0", "teachers/big", "x=other/big2"]
    assert [name for name, _ in named_folders(paths)] == ["plain", "drkd", "big", "x"]
