"""All runs of a table end, whatever is killed; a stand-in replaces `train.py`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gain import runner as gain_runner
from benchmarks.gain.plan import Job, make_plan
from benchmarks.gain.runner import Runner, is_locked
from benchmarks.gain.table import read_table
from drkd_jax.fault_tolerance.interrupt import StopRequest
from tests.benchmarks.test_gain_table import write

# One file in `checkpoints` per "step"; ends like train.py.
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
    """Sets the pause of a step, and the failing jobs."""
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


def test_a_link_to_what_is_gone_is_no_run(plan, tmp_path):
    job = plan.students[0]
    job.folder.parent.mkdir(parents=True)
    job.folder.symlink_to(tmp_path / "unmounted")
    runner(plan, []).note(job)
    assert (job.folder / "about.json").is_file()
    assert not job.folder.is_symlink()


def test_damaged_lines_of_a_run_are_no_steps(plan):
    job = plan.students[0]
    job.folder.mkdir(parents=True)
    for wrong in (b"7", b"\xff", b'{"step": null}', b'{"kind": "train", "st'):
        (job.folder / "metrics.jsonl").write_bytes(b'{"kind": "train", "step": 1}\n' + wrong)
        assert runner(plan, []).steps() == 1
