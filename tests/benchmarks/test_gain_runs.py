"""A table is worked off, whatever is killed; a stand-in trains in the place of `train.py`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gain import results as gain_results
from benchmarks.gain import runner as gain_runner
from benchmarks.gain.adopt import adopt
from benchmarks.gain.plan import Job, make_plan
from benchmarks.gain.results import as_json, differences, gather
from benchmarks.gain.runner import Runner, is_locked
from benchmarks.gain.table import read_table
from drkd_jax.data.sources import open_source
from drkd_jax.errors import UserError
from drkd_jax.fault_tolerance.interrupt import StopRequest
from tests.benchmarks.test_gain_table import write

# One "step" a file in `checkpoints`; ends as train.py does.
STAND_IN = """
import fcntl, json, os, signal, sys, time
folder, steps, pause, fail = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
os.makedirs(f"{folder}/checkpoints", exist_ok=True)
lock = open(f"{folder}/lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
with open(f"{folder}/starts", "a") as file:
    file.write(f"{sorted(os.sched_getaffinity(0))} {os.environ.get('XLA_FLAGS')}\\n")
if fail:
    print("error: the recipe is no good", file=sys.stderr)
    sys.exit(2)
for step in range(len(os.listdir(f"{folder}/checkpoints")) + 1, steps + 1):
    time.sleep(pause)
    open(f"{folder}/checkpoints/{step}", "w")
    with open(f"{folder}/metrics.jsonl", "a") as file:
        file.write(json.dumps({"kind": "train", "step": step}) + "\\n")
with open(f"{folder}/detections.json", "w") as file:
    file.write("[]")
with open(f"{folder}/summary.json", "w") as file:
    json.dump({"steps": steps, "final": {"AP": 0.0}}, file)
"""


@pytest.fixture
def plan(tmp_path):
    return make_plan(read_table(write(tmp_path)), tmp_path / "work", None)


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Sets the pause of a step, and the jobs that fail."""
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr(gain_runner, "_POLL", 0.01)

    def install(pause: float = 0.0, failing: str = "none at all") -> None:
        def command(job: Job, programs: Path) -> list[str]:
            fail = "yes" if failing in job.name else ""
            return [
                sys.executable,
                "-S",
                str(script),
                str(job.folder),
                str(job.steps),
                str(pause),
                fail,
            ]

        monkeypatch.setattr(Job, "command", command)

    install()
    return install


def runner(plan, done: list[str], **changes) -> Runner:
    settings = {"slots": 2, "cores": (), "keep_checkpoints": False} | changes
    return Runner(
        plan.jobs,
        programs=Path("programs"),
        about={"commit": "abc"},
        on_done=lambda job: done.append(job.name),
        **settings,
    )


def test_all_runs_are_trained_once_and_the_teacher_first(plan, stand_in):
    done: list[str] = []
    first = runner(plan, done)
    first.run(StopRequest(), lambda: None)
    assert not first.failed
    assert sorted(done) == sorted(job.name for job in plan.jobs)
    distilled = [job.name for job in plan.students if job.teacher]
    assert min(done.index(name) for name in distilled) > done.index("drawn/retinanet/teacher")
    assert first.steps() == sum(job.steps for job in plan.jobs) == 3 + 2 * 3 * (2 + 4)
    for job in plan.jobs:
        assert (job.folder / "checkpoints").exists() != job.is_student
        assert json.loads((job.folder / "about.json").read_text())["commit"] == "abc"
    again: list[str] = []
    runner(plan, again).run(StopRequest(), lambda: None)
    assert again == []


def test_a_signal_is_handed_on_and_the_next_call_goes_on(plan, stand_in):
    stand_in(pause=0.05)
    request, done = StopRequest(), []
    first = runner(plan, done)

    def tick() -> None:
        if first.steps() >= 4:
            request.name = "SIGTERM"

    first.run(request, tick)
    assert not first.failed
    assert first.num_waiting > 0
    assert not any(is_locked(job.folder) for job in plan.jobs)
    left = len(plan.jobs) - len(done)
    stand_in()
    runner(plan, done).run(StopRequest(), lambda: None)
    assert left > 0
    assert sorted(done) == sorted(job.name for job in plan.jobs)
    for job in plan.jobs:  # no step was done twice
        lines = (job.folder / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(1, job.steps + 1))


def test_a_killed_training_goes_on(plan, stand_in):
    stand_in(pause=0.02)
    killed: list[int] = []
    done: list[str] = []
    first = runner(plan, done, slots=1)

    def tick() -> None:
        for each in first._running:
            if each.process is not None and not killed and first.steps() >= 1:
                killed.append(each.process.pid)
                each.process.send_signal(signal.SIGKILL)

    first.run(StopRequest(), tick)
    assert killed
    assert not first.failed
    starts = [len((job.folder / "starts").read_text().splitlines()) for job in plan.jobs]
    assert sorted(starts) == [1] * (len(starts) - 1) + [2]


def test_a_training_that_outlived_its_caller_is_waited_for(plan, stand_in):
    stand_in(pause=0.15)
    teacher = plan.jobs[0]
    orphan = subprocess.Popen(teacher.command(Path("programs")))
    while not is_locked(teacher.folder):
        time.sleep(0.01)
    stand_in()
    first = runner(plan, [])
    first.run(StopRequest(), lambda: None)
    assert orphan.wait() == 0
    assert not first.failed
    assert len((teacher.folder / "starts").read_text().splitlines()) == 1


def test_failures_are_named_and_the_others_go_on(plan, stand_in):
    stand_in(failing="/teacher")
    done: list[str] = []
    first = runner(plan, done)
    first.run(StopRequest(), lambda: None)
    distilled = {job.name for job in plan.students if job.teacher}
    assert set(first.failed) == distilled | {"drawn/retinanet/teacher"}
    assert first.failed["drawn/retinanet/teacher"] == "exit code 2: error: the recipe is no good"
    assert sum("/plain/" in name for name in done) == 4


def test_each_slot_has_its_core_and_one_thread(plan, stand_in):
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        pytest.skip("needs two cores")
    stand_in(pause=0.15)
    runner(plan, [], cores=cores).run(StopRequest(), lambda: None)
    starts = [(job.folder / "starts").read_text() for job in plan.jobs]
    assert all("intra_op_parallelism_threads=1" in text for text in starts)
    assert {text.split(" ")[0] for text in starts} == {f"[{core}]" for core in cores}


def finish(job: Job, quality: float, seed: int) -> None:
    """Leaves what a finished run leaves: detections near the truth, and their scores."""
    from drkd_jax.evaluation import coco_numbers

    truth = open_source(job.config["data"]["val"]).coco_ground_truth()
    rng = np.random.default_rng(seed)
    found = [
        {
            "image_id": row["image_id"],
            "category_id": row["category_id"],
            "bbox": [float(v) for v in np.asarray(row["bbox"]) + rng.normal(0, quality, 4)],
            "score": float(rng.uniform()),
        }
        for row in truth["annotations"]
    ]
    numbers = coco_numbers(truth, found)
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
    assert rows["all", 4]["difference"]["AP"]["low"] > 0  # boxes a third as far off
    teacher = results["teachers"][0]["scores"]["AP"]
    plain = np.mean([scores["plain", seed] for seed in (0, 1)])
    assert results["gaps"][1]["AP"]["mean"] == pytest.approx(teacher - plain, abs=1e-12)
    assert as_json(results)["comparisons"][2]["difference"]["AP"]["sd"] is None  # one pair
    assert gather(plan, {})["comparisons"][0] == results["comparisons"][0]  # from the kept draws


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


def test_keys_that_came_after_a_run_count_by_their_defaults(plan):
    job = plan.students[0]
    finish(job, 1.0, 0)
    older = json.loads((job.folder / "config.json").read_text())
    del older["train"]["parallel"], older["train"]["precision"], older["train"]["clip_norm"]
    (job.folder / "config.json").write_text(json.dumps(older))
    assert differences(job, job.folder) == ["train.clip_norm"]  # 1 here; without the key, none


def test_terms_that_came_after_a_run_count_as_switched_off(plan):
    job = next(job for job in plan.students if job.config.get("distill"))
    finish(job, 1.0, 0)
    older = json.loads((job.folder / "config.json").read_text())
    del older["distill"]["pkd"]
    (job.folder / "config.json").write_text(json.dumps(older))
    assert differences(job, job.folder) == []
    job.config["distill"]["pkd"]["weight"] = 1.0
    assert differences(job, job.folder) == ["distill.pkd"]


def test_finished_runs_from_elsewhere_are_linked(plan, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    twin = make_plan(read_table(write(tmp_path)), elsewhere, None)
    finish(twin.students[1], 1.0, 0)
    other = twin.students[2]
    finish(other, 1.0, 0)
    content = {**other.config, "seed": 9}
    (other.folder / "config.json").write_text(json.dumps(content))
    lines = list(adopt(plan, [elsewhere]))
    assert len(lines) == 2
    assert lines[0].endswith(f"adopted as {plan.students[1].name}")
    assert lines[1].endswith("not adopted; the most similar run has another seed")
    assert plan.students[1].summary() is not None
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
    assert (twin.students[1].folder / "summary.json").is_file()
    again = list(adopt(plan, [elsewhere]))
    assert again[0].endswith("is in place")
    with pytest.raises(UserError, match=r"--adopt .*nowhere: no such folder"):
        list(adopt(plan, [tmp_path / "nowhere"]))
