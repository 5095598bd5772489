"""The terminal shows a selection of a run's output; its log has everything."""

from __future__ import annotations

import io

from drkd_jax.demo.progress import Progress, RunLog


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_log_keeps_every_line_and_passes_on_what_matters(tmp_path):
    out = io.StringIO()
    progress = Progress(100, out)
    progress.stage("student")
    with RunLog(tmp_path / "train.log", progress) as log:
        print("devices    1 x cpu", file=log)
        log.write("step 10/100  lo")  # a line in two pieces
        log.write("ss 1.0\nwarning: step 10: the term x has been 0 for 200 steps\n")
        print("evaluation at step 20: AP 0.1  AP50 0.2  AP75 0.1  AP_S 0.0", file=log)
    text = (tmp_path / "train.log").read_text()
    assert text.count("\n") == 4
    assert "step 10/100  loss 1.0\n" in text
    said = out.getvalue().splitlines()
    assert said[0].startswith("student: step 10; 10% of all steps")
    assert said[1].endswith("the term x has been 0 for 200 steps")
    words = ["evaluation", "at", "step", "20:", "AP", "0.1", "AP50", "0.2", "AP75", "0.1"]
    assert said[2].split() == words
    assert len(said) == 3


def test_time_left_counts_only_what_was_done_here(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("drkd_jax.demo.progress.time.monotonic", lambda: now[0])
    out = io.StringIO()
    progress = Progress(300, out)
    progress.stage("teacher")
    progress.at(100, skipped=True)  # trained by an earlier call
    progress.stage("student")
    now[0] += 50
    progress.at(50)
    # 50 steps took 50 s, 150 are left
    assert out.getvalue() == "student: step 50; 50% of all steps, 50 s so far, about 150 s left\n"


def test_one_bar_over_all_stages():
    out = Terminal()
    progress = Progress(300, out)
    progress.stage("teacher")
    progress.at(100, skipped=True)
    progress.stage("student")
    progress.at(120)
    progress.say("a word")
    progress.stage("DRKD student")
    progress.at(80)
    progress.close()
    drawn = out.getvalue()
    assert "a word\n" in drawn
    assert "300/300" in drawn.replace("\r", "\n").splitlines()[-1]
