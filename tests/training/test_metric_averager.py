from __future__ import annotations

import pytest

from drkd_jax.training.metric_averager import MetricAverager

STEP = {"total": 2.0, "learning_rate": 0.1, "finite": 1.0, "diag/boxes_left_out": 1.0}


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


@pytest.mark.parametrize(("steps", "left"), [(1, "10 min"), (10, "10 s")])
def test_what_is_left_comes_from_whole_steps(steps, left):
    """Ten steps of 0.1 s, and compiling beside them; one step that only the log line awaited."""
    window = MetricAverager({}, 4)
    window.leave_out(-6.0 * steps)
    for _ in range(steps):
        window.values(dict(STEP))
        window.took(0.1)
    _, shown = window.close(steps_left=100)
    assert shown["left"] == left
