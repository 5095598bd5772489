"""Results of a table's runs: numbers, pairs, stored draws, and runs not of the table."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from benchmarks.gain import adopt as gain_adopt
from benchmarks.gain import results as gain_results
from benchmarks.gain.adopt import adopt
from benchmarks.gain.markdown import markdown
from benchmarks.gain.plan import Job, make_plan
from benchmarks.gain.results import as_json, differences, gather
from benchmarks.gain.runner import Runner
from benchmarks.gain.table import read_table
from drkd_jax.data.sources import open_source
from drkd_jax.errors import UserError
from drkd_jax.evaluation import coco_numbers
from tests.benchmarks.test_gain_table import TEXT, write

FRAME = {
    "table": "some",
    "command": "x",
    "reference": "plain",
    "draws": 60,
    "arms": {},
    "machine": {"devices": "1", "platform": "cpu", "cores": 2},
    "commit": "abc",
    "versions": {},
}


@pytest.fixture
def plan(tmp_path):
    return make_plan(read_table(write(tmp_path)), tmp_path / "work", None)


def finish(job: Job, quality: float, seed: int) -> None:
    """Writes the files of a finished run: detections near the truth, and their scores."""
    truth = open_source(job.config["data"]["val"]).coco_ground_truth()
    images = [image["id"] for image in truth["images"]]
    images = images[: job.config["eval"]["max_images"] or None]
    rng = np.random.default_rng(seed)
    found = [
        {
            "image_id": row["image_id"],
            "category_id": row["category_id"],
            "bbox": [float(v) for v in np.asarray(row["bbox"]) + rng.normal(0, quality, 4)],
            "score": float(rng.uniform()),
        }
        for row in truth["annotations"]
        if row["image_id"] in images
    ]
    most = job.config["eval"]["max_detections"]
    numbers = coco_numbers(truth, found, images, max_detections=most)
    job.folder.mkdir(parents=True)
    summary = {
        "final": numbers,
        "best": numbers,
        "best_step": job.steps,
        "steps": job.steps,
        "seconds": 1.0,
        "parameters": {"student": 1, "distiller": 0, "teacher": 0},
        "warnings": [],
    }
    contents = {"summary": summary, "detections": found, "config": job.config}
    for name, content in contents.items():
        (job.folder / f"{name}.json").write_text(json.dumps(content))


@pytest.fixture
def few_draws(monkeypatch):
    monkeypatch.setattr(gain_results, "DRAWS", 60)


def test_results_pair_the_seeds_and_keep_what_is_missing(plan, few_draws):
    for i, job in enumerate(plan.jobs):
        if job.name.endswith("pixel/2/seed1"):
            continue
        finish(job, {"plain": 3.0}.get(job.place.get("arm"), 1.0), i)
    results = gather(plan, {"drawn/retinanet/pixel/2/seed1": "exit code 1"})
    states = {(run["arm"], run["budget"], run["seed"]): run["state"] for run in results["runs"]}
    assert [key for key, state in states.items() if state != "done"] == [("pixel", 2, 1)]
    assert states["pixel", 2, 1] == "failed"
    rows = {(row["arm"], row["budget"]): row for row in results["comparisons"]}
    assert rows["pixel", 2]["paired_seeds"] == [0]
    assert rows["all", 4]["paired_seeds"] == [0, 1]
    assert "difference" not in rows["plain", 2]
    scores = {
        (run["arm"], run["seed"]): run["scores"]["AP"]
        for run in results["runs"]
        if run["budget"] == 4
    }
    each = [scores["all", seed] - scores["plain", seed] for seed in (0, 1)]
    assert rows["all", 4]["difference"]["AP"]["each"] == pytest.approx(each, abs=1e-12)
    assert rows["all", 4]["difference"]["AP"]["low"] > 0  # boxes with a third of the error
    teacher = results["teachers"][0]["scores"]["AP"]
    plain = np.mean([scores["plain", seed] for seed in (0, 1)])
    assert results["gaps"][1]["AP"]["mean"] == pytest.approx(teacher - plain, abs=1e-12)
    assert as_json(results)["comparisons"][2]["difference"]["AP"]["sd"] is None  # one pair
    assert gather(plan, {})["comparisons"][0] == results["comparisons"][0]  # from the stored draws


@pytest.mark.parametrize("of", ["sets.drawn", "base"])
def test_images_and_detections_are_counted_as_the_table_says(tmp_path, few_draws, of):
    asked = f"[{of}]\nconfig.eval.max_images = 2\nconfig.eval.max_detections = 150"
    plan = make_plan(read_table(write(tmp_path, TEXT.replace(f"[{of}]", asked))), tmp_path, None)
    for i, job in enumerate(plan.jobs):
        finish(job, 3.0, i)
    results = gather(plan, {})
    assert {run["state"] for run in results["runs"]} == {"done"}
    assert all(np.isfinite(row["difference"]["AP"]["low"]) for row in results["comparisons"][1:3])
    # With base, only for students: their teacher is scored on other images, so there is no gap.
    assert bool(results["gaps"]) == (of == "sets.drawn")


def test_a_run_that_ended_early_by_its_own_rule_is_finished(tmp_path):
    early = "config.train.log_every = 1\nconfig.train.early_stop = 2"
    text = TEXT.replace("config.train.log_every = 1", early)
    job = make_plan(read_table(write(tmp_path, text)), tmp_path, None).students[-1]
    finish(job, 3.0, 0)
    file = job.folder / "summary.json"
    summary = json.loads(file.read_text())
    words = "stopped early at step 3 of 4: no better AP in 2 evaluations since step 1 ({}{})"
    for patience, done in ((2, True), (1, False)):
        ended = words.format("config.train.early_stop = ", patience)
        file.write_text(json.dumps({**summary, "steps": 3, "ended": ended}))
        assert (job.summary() is not None) == done
    file.write_text(json.dumps({**summary, "steps": 3, "ended": "3 steps are done"}))
    assert job.summary() is None


def test_what_is_not_a_number_is_a_dash(plan, few_draws):
    for i, job in enumerate(plan.jobs):
        finish(job, 3.0, i)
    results = gather(plan, {})
    nothing = dict.fromkeys(("mean", "sd", "t_low", "t_high", "low", "high"), math.nan)
    for row in results["comparisons"]:
        if "difference" in row:
            row["difference"]["AP_S"] |= {**nothing, "each": (math.nan,) * 2, "above_zero": False}
    text = markdown({**results, **FRAME})
    assert "| AP_S | - | - | - | no | -, - |" in text
    assert "+nan" not in text


def test_a_run_of_other_settings_or_of_two_runs_is_refused(plan, few_draws):
    job = plan.students[0]
    finish(job, 1.0, 0)
    other = {**job.config, "train": {**job.config["train"], "learning_rate": 7.0}}
    (job.folder / "config.json").write_text(json.dumps(other))
    with pytest.raises(UserError, match=r"other settings than the table's \(train.learning_rate\)"):
        gather(plan, {})
    (job.folder / "config.json").write_text(json.dumps(job.config))
    (job.folder / "detections.json").write_text("[]")
    with pytest.raises(UserError, match=r"detections.json scores AP 0\.0"):
        gather(plan, {})


def test_a_config_with_a_part_that_is_no_more_differs_in_it(plan):
    job = plan.students[0]
    finish(job, 1.0, 0)
    older = {**job.config, "net": {"depth": 3}, "student": None}
    del older["data"]
    (job.folder / "config.json").write_text(json.dumps(older))
    assert {"net", "data.val"} <= set(differences(job, job.folder))


def test_keys_that_came_after_a_run_count_by_their_defaults(plan):
    job = plan.students[0]
    finish(job, 1.0, 0)
    older = json.loads((job.folder / "config.json").read_text())
    del older["train"]["parallel"], older["train"]["precision"], older["train"]["clip_norm"]
    (job.folder / "config.json").write_text(json.dumps(older))
    assert differences(job, job.folder) == ["train.clip_norm"]  # 1 here; without the key, none


def test_a_run_of_old_names_is_the_same_run(plan):
    job = next(job for job in plan.students if job.config["distill"])
    finish(job, 1.0, 0)
    older = json.loads((job.folder / "config.json").read_text())
    older["eval"]["max_pictures"] = older["eval"].pop("max_images")
    older["distill"]["pictures_per_device"] = older["distill"].pop("images_per_device")
    (job.folder / "config.json").write_text(json.dumps(older))
    assert differences(job, job.folder) == []


@pytest.mark.parametrize("wrong", [b'{"best": ', b"\xff", b"7"])
def test_a_damaged_file_of_a_run_is_named(tmp_path, wrong):
    (tmp_path / "taught").mkdir()
    (tmp_path / "taught" / "summary.json").write_bytes(wrong)
    recipe = 'recipe = "configs/folder.py:teacher:{detector}"\nconfig.train.steps = 3'
    text = TEXT.replace(recipe, f'workdir = "{tmp_path}/taught"')
    plan = make_plan(read_table(write(tmp_path, text)), tmp_path, None)
    with pytest.raises(UserError, match=r"taught: its summary\.json cannot be read"):
        gather(plan, {})
    job = plan.students[0]
    finish(job, 1.0, 0)
    (job.folder / "config.json").write_bytes(wrong)
    with pytest.raises(UserError, match=r"seed0: its config\.json cannot be read"):
        gather(plan, {})
    (job.folder / "summary.json").write_bytes(wrong)
    assert job.summary() is None  # it is trained again, which writes it


def test_terms_that_came_after_a_run_count_as_switched_off(plan):
    job = next(job for job in plan.students if job.config.get("distill"))
    finish(job, 1.0, 0)
    older = json.loads((job.folder / "config.json").read_text())
    del older["distill"]["pkd"]
    (job.folder / "config.json").write_text(json.dumps(older))
    assert differences(job, job.folder) == []
    job.config["distill"]["pkd"]["weight"] = 1.0
    assert differences(job, job.folder) == ["distill.pkd"]


def _taught_by(job: Job, weights: str | None) -> None:
    path = job.folder / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "teacher_weights": weights}))


def test_a_distilled_run_from_elsewhere_had_the_same_teacher(plan, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    twin = make_plan(read_table(write(tmp_path)), elsewhere, None)
    ours, theirs = (each.students[1] for each in (plan, twin))
    assert ours.config["distill"]
    finish(theirs, 1.0, 0)
    (line,) = adopt(plan, [elsewhere])
    assert "does not tell by which weights" in line
    _taught_by(theirs, "aa")
    (line,) = adopt(plan, [elsewhere])
    assert "is not trained yet" in line
    finish(ours.teacher, 1.0, 0)
    monkeypatch.setattr(gain_adopt, "_weights", lambda teacher: "bb")
    (line,) = adopt(plan, [elsewhere])
    assert "by other weights" in line
    assert ours.summary() is None
    monkeypatch.setattr(gain_adopt, "_weights", lambda teacher: "aa")
    (line,) = adopt(plan, [elsewhere])
    assert line.endswith(f"adopted as {ours.name}")


def test_a_teacher_from_elsewhere_comes_before_whom_it_taught(plan, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    twin = make_plan(read_table(write(tmp_path)), elsewhere, None)
    finish(twin.students[1], 1.0, 0)
    finish(twin.jobs[0], 1.0, 0)
    lines = list(adopt(plan, [elsewhere]))  # by then it is the same folder
    assert [line.rpartition(" ")[2] for line in lines] == [job.name for job in plan.jobs[0:3:2]]


def test_a_teacher_of_another_detector_is_called_so(tmp_path):
    text = TEXT.replace("[teacher]", '[teacher]\ndetector = "faster_rcnn"')
    plan = make_plan(read_table(write(tmp_path, text)), tmp_path / "work", None)
    for job in plan.jobs[:2]:
        finish(job, 1.0, 0)
    results = gather(plan, {})
    assert [row["teacher_detector"] for row in results["teachers"]] == ["faster_rcnn"]
    assert len(results["gaps"]) == 1  # against the RetinaNet that it teaches
    assert "| *teacher, faster_rcnn* | 1 |" in markdown({**results, **FRAME})


def test_runs_of_two_teachers_make_no_table(plan):
    first, second = (job for job in plan.students[:3] if job.config["distill"])
    for job, weights in ((first, "aa"), (second, "bb")):
        finish(job, 1.0, 0)
        _taught_by(job, weights)
    with pytest.raises(UserError, match="taught by other weights than"):
        gather(plan, {})
    for weights in ("aa", None):  # None: an older run
        _taught_by(second, weights)
        gather(plan, {})


def test_finished_runs_from_elsewhere_are_linked(plan, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    twin = make_plan(read_table(write(tmp_path)), elsewhere, None)
    finish(twin.students[0], 1.0, 0)
    other = twin.students[2]
    finish(other, 1.0, 0)
    content = {**other.config, "seed": 9}
    (other.folder / "config.json").write_text(json.dumps(content))
    lines = list(adopt(plan, [elsewhere]))
    assert len(lines) == 2
    assert lines[0].endswith(f"adopted as {plan.students[0].name}")
    assert lines[1].endswith("not adopted; the most similar run has another seed")
    assert plan.students[0].summary() is not None
    assert plan.students[2].summary() is None
    Runner(
        plan.jobs,
        slots=1,
        cores=(),
        programs=tmp_path,
        about={},
        keep_checkpoints=False,
        on_done=lambda job: None,
    )
    assert (twin.students[0].folder / "summary.json").is_file()
    again = list(adopt(plan, [elsewhere]))
    assert again[0].endswith("is in place")
    with pytest.raises(UserError, match=r"--adopt .*nowhere: no such folder"):
        list(adopt(plan, [tmp_path / "nowhere"]))
