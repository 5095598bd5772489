import json
import math

import jax
import jax.numpy as jnp
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from drkd_jax.errors import UserError
from drkd_jax.monitoring.collapse import CollapseMonitor
from drkd_jax.monitoring.metrics import (
    METRICS_FILE,
    MetricAverager,
    Metrics,
    read_metrics,
)
from drkd_jax.report import curves
from tests.training.compilations import CompilationCounter

STEP = {"total": 2.0, "learning_rate": 0.1, "finite": 1.0, "diag/boxes_left_out": 1.0}


def write(folder, start, steps):
    metrics = Metrics(folder, start, 10)
    for step in steps:
        metrics.train(step, {"total": float(step)}, {"loss": "1"})
    metrics.close()


def test_lines_after_the_checkpoint_are_written_again_not_twice(tmp_path):
    write(tmp_path, 0, range(1, 8))
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"kind": "train", "st')  # what a kill leaves
    write(tmp_path, 5, range(6, 9))
    assert [line["step"] for line in read_metrics(tmp_path / METRICS_FILE)] == [*range(1, 9)]


WHOLE = b'{"kind": "train", "step": 1, "total": 1.0}'
NO_LINES = (
    b'{"kind": "train", "st',
    b'{"kind": "train", "step": 1, "total": \xff}',
    b"7",
    b'{"kind": "train"}',
    b'{"kind": "train", "step": null}',
    b'{"kind": "warning", "step": 1}',
    b"",
)


@pytest.mark.parametrize("wrong", NO_LINES)
def test_what_is_no_line_of_a_run_is_left_out_and_named(tmp_path, caplog, wrong):
    path = tmp_path / METRICS_FILE
    path.write_bytes(b"\n".join([WHOLE, wrong, WHOLE, b""]))
    whole = json.loads(WHOLE)
    assert read_metrics(path) == [whole, whole]
    assert caplog.messages == [f"{path}: not written by a run, and left out: line 2"]
    assert curves.read_metrics(path) == [whole]
    metrics = Metrics(tmp_path, 1, 10)  # a run that goes on
    metrics.close()
    assert metrics.earlier == [whole, whole]
    assert path.read_bytes().splitlines() == [WHOLE, WHOLE]


def test_a_last_line_cut_short_is_left_out_without_a_word(tmp_path, caplog):
    path = tmp_path / METRICS_FILE
    for torn in NO_LINES[:2]:
        path.write_bytes(b"\n".join([WHOLE, torn]))
        assert read_metrics(path) == [json.loads(WHOLE)]
    assert caplog.messages == []


def warned(folder, start, *texts):
    """Runs a session with one warning per step, from the step after `start` on."""
    metrics = Metrics(folder, start, 10)
    for step, text in enumerate(texts, start + 1):
        metrics.warn(step, text)
    metrics.close()
    return metrics.warnings


def test_warnings_of_earlier_sessions_stay_each_once(tmp_path):
    assert warned(tmp_path, 0, "of the first session", "dead") == ["of the first session", "dead"]
    # From step 1 on, killed before the second warning came again; then it comes.
    assert warned(tmp_path, 1) == ["of the first session", "dead"]
    assert warned(tmp_path, 1, "dead", "new") == ["of the first session", "dead", "new"]
    lines = [(line["step"], line["warning"]) for line in read_metrics(tmp_path / METRICS_FILE)]
    assert lines == [(1, "of the first session"), (2, "dead"), (3, "new")]
    silent = Metrics(tmp_path, 1, 10, silent=True)  # another process says the same
    assert silent.warnings == ["of the first session", "dead", "new"]


def test_a_warning_that_passes_is_this_session_s_alone(tmp_path):
    metrics = Metrics(tmp_path, 0, 10)
    metrics.warn(0, "too short", passes=True)
    metrics.warn(0, "dead")
    metrics.close()
    assert metrics.warnings == ["too short", "dead"]
    assert warned(tmp_path, 5, "new") == ["dead", "new"]
    lines = [(line["step"], line["warning"]) for line in read_metrics(tmp_path / METRICS_FILE)]
    assert lines == [(0, "too short"), (0, "dead"), (6, "new")]  # the log of what was said
    again = Metrics(tmp_path, 6, 10)
    again.warn(6, "too short", passes=True)
    again.close()
    assert again.warnings == ["dead", "new", "too short"]


def test_a_run_that_begins_anew_has_no_warnings_of_the_one_before(tmp_path):
    warned(tmp_path, 0, "no checkpoint came after it")
    assert warned(tmp_path, 0) == []
    assert read_metrics(tmp_path / METRICS_FILE) == []


def events(path):
    """The events of a file; each has a length, its checksum, the event and its checksum."""
    data, at, found = path.read_bytes(), 0, []
    while at < len(data):
        length = int.from_bytes(data[at : at + 8], "little")
        found.append(Event.FromString(data[at + 12 : at + 12 + length]))
        at += 16 + length
    return found


@pytest.mark.parametrize("start", [0, 5])
def test_tensorboard_hides_the_later_steps_of_the_session_before(tmp_path, start):
    write(tmp_path, start, [start + 1])
    (path,) = (tmp_path / "tensorboard").iterdir()
    begun = [event.step for event in events(path) if event.session_log.status == SessionLog.START]
    assert begun == [start + 1]
    assert events(path)[-1].summary.value[0].tag == "train/total"


def test_every_line_is_json_also_where_a_number_is_not_finite(tmp_path, capsys):
    metrics = Metrics(tmp_path, 0, 10)
    metrics.train(1, {"total": math.nan}, {"loss": "nan"})
    metrics.evaluation(1, {"AP": 0.5})
    metrics.warn(2, "something is silent")
    metrics.close()
    lines = [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text().splitlines()]
    assert lines[0] == {"kind": "train", "step": 1, "total": None}
    assert lines[1] == {"kind": "eval", "step": 1, "AP": 0.5}
    assert lines[2]["warning"] == "something is silent"
    assert metrics.warnings == ["something is silent"]
    assert "warning: step 2: something is silent" in capsys.readouterr().err
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_full_disk_is_told(tmp_path):
    metrics = Metrics(tmp_path, 0, 10)
    metrics._file = open("/dev/full", "w")  # noqa: SIM115
    with pytest.raises(UserError, match=r"metrics\.jsonl: cannot be written \(the disk is full\)"):
        metrics.warn(1, "something")


def test_a_process_that_is_not_the_first_writes_and_says_nothing(tmp_path, capsys):
    metrics = Metrics(tmp_path, 0, 10, silent=True)
    metrics.train(1, {"total": 1.0}, {"loss": "1"})
    metrics.evaluation(1, {"AP": 0.5})
    metrics.warn(1, "something")
    metrics.close()
    assert not any(tmp_path.iterdir())
    assert metrics.warnings == ["something"]
    assert capsys.readouterr().err == ""


def test_compilations_are_counted():
    double = jax.jit(lambda x: x * 2 + 1)
    with CompilationCounter() as counter:
        double(jnp.ones(3))
        once = counter.count
        double(jnp.zeros(3))
        assert counter.count - once <= 1  # jnp.zeros itself
        again = counter.count
        double(jnp.zeros(4))
        assert counter.count > again
    assert once >= 1
    seen = counter.count
    double(jnp.ones(5))
    assert counter.count == seen


def test_what_the_loader_left_out_is_added_to_what_the_terms_left_out():
    window = MetricAverager({}, 4)
    window.counts = lambda: {"padding": 0.25, "boxes_past_max": 3.5, "loader_rate": 80.0}
    for _ in range(2):
        window.values(dict(STEP))
        window.took(0.1)
    values, _ = window.close(steps_left=5)
    assert values["diag/boxes_left_out"] == pytest.approx(4.5)
    assert values["padding"] == 0.25
    assert values["loader_rate"] == 80.0


def test_a_window_without_a_loader_has_no_counts():
    window = MetricAverager({}, 4)
    window.values(dict(STEP))
    window.took(0.1)
    values, _ = window.close(steps_left=0)
    assert values["diag/boxes_left_out"] == 1.0
    assert "padding" not in values


def test_steps_without_a_relation_do_not_hide_that_the_others_are_uniform():
    """Few objects per image: four of ten batches have an image with enough boxes to relate."""
    name = "diag/instance_relation/P3/teacher_entropy"
    monitor, warnings = CollapseMonitor(), []
    for _ in range(5):
        window = MetricAverager({}, 4)
        for step in range(10):
            window.values(STEP | {name: 0.97 if step < 4 else 0.0})
            window.took(0.1)
        values, _ = window.close(steps_left=5)
        assert values[name] == pytest.approx(0.97, rel=1e-15)
        warnings += monitor.observe(values)
    assert len(warnings) == 1
    assert "all but uniform" in warnings[0]
    window.values(STEP | {name: 0.0})
    window.took(0.1)
    assert window.close(steps_left=5)[0][name] == 0


@pytest.mark.parametrize(("steps", "left"), [(1, "10 min"), (10, "10 s")])
def test_what_is_left_comes_from_whole_steps(steps, left):
    """Ten steps of 0.1 s, with compiling besides; one step that only the log line waited for."""
    window = MetricAverager({}, 4)
    window.leave_out(-6.0 * steps)
    for _ in range(steps):
        window.values(dict(STEP))
        window.took(0.1)
    _, shown = window.close(steps_left=100)
    assert shown["left"] == left
