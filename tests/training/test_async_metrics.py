"""Monitors treat all sessions of a run as one."""

from types import SimpleNamespace

from drkd_jax.monitoring.metrics import Metrics
from drkd_jax.training.async_metrics import AsyncMetrics

STEP = {"total": 2.0, "learning_rate": 0.1, "finite": 1.0}
RUN = SimpleNamespace(weights={}, train=SimpleNamespace(batch_size=4), distillation=None, steps=100)


def session(folder, start, name, values):
    """Runs a session with a log line at every step; returns the work folder's warnings."""
    metrics = Metrics(folder, start, RUN.steps)
    under_way = AsyncMetrics(RUN, metrics, None)
    for step, value in enumerate(values, start + 1):
        under_way.averager.values({**STEP, f"diag/{name}": value})
        under_way.averager.took(0.1)
        under_way.log(step)
    metrics.close()
    return metrics.warnings


def test_a_collapse_over_several_sessions_is_named(tmp_path):
    name = "pixel_relation/P3/teacher_norm"
    assert session(tmp_path, 0, name, [1.4] * 6) == []
    assert session(tmp_path, 6, name, [1.0] * 8) == []
    (said,) = session(tmp_path, 13, name, [0.6] * 8)  # of the last one's steps one came again
    assert said.startswith(f"collapse: diag/{name} fell from 1.4 to 0.6")
    assert session(tmp_path, 21, name, [0.6] * 8) == [said]


def test_an_empty_target_is_named_once_whatever_the_sessions(tmp_path):
    name = "instance_relation/P3/teacher_entropy"
    (said,) = session(tmp_path, 0, name, [0.98] * 6)
    assert session(tmp_path, 6, name, [0.97] * 6) == [said]
