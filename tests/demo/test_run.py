"""The order of the demo's steps, with a stand-in that writes the files of a training."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from drkd_jax.data.sources import open_source
from drkd_jax.demo import Recipes, figures
from drkd_jax.demo import run as room
from drkd_jax.demo.run import demo
from drkd_jax.demo.teacher_file import Scored
from drkd_jax.errors import UserError
from drkd_jax.evaluation import coco_numbers
from drkd_jax.report import relations
from drkd_jax.report.relations import Relations, choose_images
from tests.report.test_page import check_harmless

VAL = "shapes:12:1"
NOISE = {"teacher": 1.0, "student": 5.0, "drkd": 3.0}  # errors of the boxes, pixels


def recipes() -> Recipes:
    student = {
        "seed": 3,
        "data": {"train": "shapes:8", "val": VAL},
        "student": {"detector": "retinanet"},
        "teacher": None,
        "distill": None,
        "train": {"steps": 20},
    }
    teacher = {**copy.deepcopy(student), "train": {"steps": 30}}
    distilled = {
        **copy.deepcopy(student),
        "teacher": {"checkpoint": ""},
        "distill": {"pixel_relation": {"weight": 1.0}},
    }
    return Recipes(teacher, student, distilled)


CARD = {
    "command": "how it was made",
    "seed": 7,
    "step": 30,
    "date": "2026-11-25",
    "train": "shapes:99",
    "val": VAL,
    "ap_single_precision": 0.5,
}


def off(kind: str, config: dict) -> tuple[dict, list]:
    """Detections with the noise of their kind, and their COCO numbers."""
    truth = open_source(config["data"]["val"]).coco_ground_truth()
    rng = np.random.default_rng(config["seed"])
    found = [
        {
            "image_id": a["image_id"],
            "category_id": a["category_id"],
            "bbox": [float(v) for v in np.asarray(a["bbox"]) + rng.normal(0, NOISE[kind], 4)],
            "score": 0.8,
        }
        for a in truth["annotations"]
    ]
    return coco_numbers(truth, found), found


class Training:
    """Writes the files of a run; the DRKD student's detections are better than the plain one's."""

    def __init__(self):
        self.calls: list[str] = []
        self.fail: str | None = None

    def __call__(self, config: dict, workdir: Path) -> dict:
        self.calls.append(workdir.name)
        if workdir.name == self.fail:
            raise KeyboardInterrupt
        if config["teacher"]:
            assert Path(config["teacher"]["checkpoint"]).exists()
        numbers, found = off(workdir.name.partition("_")[0], config)
        steps = config["train"]["steps"]
        summary = {
            "final": numbers,
            "best_step": steps,
            "steps": steps,
            "seconds": 12.0,
            "parameters": {"student": 1000, "distiller": 10, "teacher": 0},
            "warnings": [],
        }
        (workdir / "detections.json").write_text(json.dumps(found))
        (workdir / "summary.json").write_text(json.dumps(summary))
        line = {"kind": "train", "step": steps, "cls_loss": 0.5, "share/pixel_relation": 0.1}
        (workdir / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        return summary


def fake_relations(config, workdir, index) -> Relations:
    record = open_source(config["data"]["val"]).record(index)
    n = len(record.boxes)
    maps = np.random.default_rng(0).normal(size=(16, 24, 4)).astype(np.float32)
    height, width = record.image.shape[:2]
    stride = max(height, width) // 16
    maps = maps[: -(-height // stride), : -(-width // stride)]
    sides = ("teacher", "student")
    return Relations(
        np.asarray(record.image),
        record.boxes,
        record.labels,
        stride,
        dict.fromkeys(sides, (maps, maps)),
        {side: np.full((n, n), 1 / n, np.float32) for side in sides},
    )


@pytest.fixture
def training(monkeypatch) -> Training:
    stand_in = Training()
    monkeypatch.setattr(room, "train", stand_in)
    monkeypatch.setattr(room, "draw_figures", lambda *_: {})
    monkeypatch.setattr(room, "see_relations", lambda *_: None)
    monkeypatch.setattr(room, "demo_page", lambda *_: "")
    monkeypatch.setattr(room, "_RESAMPLES", 20)
    monkeypatch.setattr(
        room.teacher_file, "score", lambda _, config: Scored(*off("teacher", config), 5000, CARD)
    )
    monkeypatch.setattr(
        room.teacher_file, "export_half", lambda folder, out, *_: out.write_text(folder.name)
    )
    return stand_in


@pytest.fixture
def made_before(tmp_path) -> Path:
    path = tmp_path / "given.safetensors"
    path.write_text("weights")
    return path


def test_a_teacher_made_beforehand_is_scored_and_not_trained(training, tmp_path, made_before):
    results = demo(tmp_path / "demo", recipes(), teacher=made_before)
    assert training.calls == ["student", "drkd"]
    assert [run["name"] for run in results["runs"]] == ["teacher", "plain student", "DRKD student"]
    assert results["runs"][0]["train_seconds"] is None
    assert results["runs"][0]["parameters"] == 5000
    text = (tmp_path / "demo" / "results.md").read_text()
    for words in ("given.safetensors", "how it was made", "8 labelled images", "shapes:99"):
        assert words in text
    assert results["last_word"]["numbers"]["teacher_gap"] == pytest.approx(
        results["runs"][0]["scores"]["AP"] - results["runs"][1]["scores"]["AP"]
    )
    assert results["last_word"]["text"] in text


def test_another_teacher_in_the_same_folder_is_refused(training, tmp_path, made_before):
    demo(tmp_path / "demo", recipes(), teacher=made_before)
    made_before.write_text("other weights")
    with pytest.raises(UserError, match=r"drkd was begun with another teacher.*--workdir"):
        demo(tmp_path / "demo", recipes(), teacher=made_before)


def test_everything_is_left_behind(training, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "draw_figures", figures.draw_figures)
    monkeypatch.setattr(room, "see_relations", relations.see_relations)
    monkeypatch.setattr(room, "demo_page", figures.demo_page)
    monkeypatch.setattr(relations, "relations", fake_relations)
    results = demo(tmp_path, recipes(), command="the command")
    assert training.calls == ["teacher", "student", "drkd"]
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(results))
    assert [run["steps"] for run in results["runs"]] == [30, 20, 20]
    assert results["teacher_minus_plain"]["difference"] > 0
    text = (tmp_path / "results.md").read_text()
    for name in results["figures"]:
        assert (tmp_path / name).stat().st_size > 5000
        assert f"({name})" in text
    assert set(results["figures"]) == {
        "detections.png",
        "pixel_relation.png",
        "instance_relation.png",
        "curves.png",
    }
    assert "the command" in text
    assert "no claim of a gain rests on this run" in text
    page = (tmp_path / "report.html").read_text()
    check_harmless(page)
    for words in (
        "no claim of a gain rests",
        "Helped most",
        "Pick a pixel",
        "Settings that differ",
    ):
        assert words in page


def test_a_second_call_trains_nothing_and_says_the_same(training, tmp_path):
    first = demo(tmp_path, recipes())
    second = demo(tmp_path, recipes())
    assert len(training.calls) == 3
    assert [run["scores"] for run in second["runs"]] == [run["scores"] for run in first["runs"]]
    assert second["drkd_minus_plain"] == first["drkd_minus_plain"]


def test_a_call_that_was_stopped_goes_on(training, tmp_path):
    training.fail = "drkd"
    with pytest.raises(KeyboardInterrupt):
        demo(tmp_path, recipes())
    assert not (tmp_path / "results.json").exists()
    training.fail = None
    demo(tmp_path, recipes())
    assert training.calls == ["teacher", "student", "drkd", "drkd"]


def test_a_teacher_that_is_trained_again_is_written_again(training, tmp_path):
    training.fail = "student"
    with pytest.raises(KeyboardInterrupt):
        demo(tmp_path, recipes())
    (tmp_path / "teacher.safetensors").write_text("of another training")
    shutil.rmtree(tmp_path / "teacher")
    training.fail = None
    demo(tmp_path, recipes())
    assert (tmp_path / "teacher.safetensors").read_text() == "teacher"


def test_other_settings_are_refused_by_name(training, tmp_path):
    demo(tmp_path, recipes())
    other = recipes()
    other.teacher["train"]["steps"] = 31
    with pytest.raises(UserError, match=r"teacher.*train\.steps.*--workdir"):
        demo(tmp_path, other)
    assert len(training.calls) == 3


def test_two_students_that_differ_are_refused(training, tmp_path):
    unfair = recipes()
    unfair.distilled["train"]["steps"] = 40
    with pytest.raises(UserError, match=r"train\.steps"):
        demo(tmp_path, unfair)
    assert training.calls == []


def test_pairs_of_students_by_seed(training, tmp_path):
    results = demo(tmp_path, recipes(), seeds=2)
    assert training.calls == [
        "teacher",
        "student_seed3",
        "drkd_seed3",
        "student_seed4",
        "drkd_seed4",
    ]
    assert [run["seed"] for run in results["runs"]] == [3, 3, 3, 4, 4]
    assert len(results["drkd_minus_plain"]) == 2
    assert "Over 2 training seeds" in (tmp_path / "results.md").read_text()
    with pytest.raises(UserError, match="--seeds=99"):
        demo(tmp_path, recipes(), seeds=99)


def test_images_are_chosen_by_their_objects_alone():
    source = open_source(VAL)
    chosen = choose_images(source, 3, 4)
    assert len(chosen) == 3
    assert all(source.meta(i).num_boxes >= 4 for i in chosen)
    assert chosen == sorted(chosen)
    fullest = choose_images(source, 2, 1000)
    assert source.meta(fullest[0]).num_boxes == max(source.meta(i).num_boxes for i in range(12))
