import json
import math

import pytest

from drkd_jax.monitoring.inactive_loss import InactiveLossMonitor

WEIGHTS = {"pixel_relation": 2.0, "instance_relation": 1.0}


def warned(values, times, **settings):
    silence = InactiveLossMonitor(WEIGHTS, ("box_loss",), **settings)
    spoken = {"total": 10.0, "pixel_relation": 1.0, "instance_relation": 1.0, "box_loss": 1.0}
    return [silence.observe({**spoken, **values}) for _ in range(times)]


def test_terms_that_speak_give_no_warning():
    assert warned({}, 500) == [[]] * 500


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.0, "has been 0 for 200 steps"),
        (math.nan, "not finite"),
        (0.0049, "under 0.10% of the total loss"),
    ],
)
def test_a_silent_term_is_named_once_at_step_200(value, words):
    warnings = warned({"pixel_relation": value}, 450)
    assert [step for step, each in enumerate(warnings, 1) if each] == [200]
    (warning,) = warnings[199]
    assert "pixel_relation" in warning
    assert words in warning


def test_the_share_counts_the_weight():
    assert warned({"pixel_relation": 0.0051}, 300) == [[]] * 300  # 2 x 0.0051 of 10
    assert any(warned({"instance_relation": 0.0051}, 300))


def test_a_term_that_speaks_again_starts_the_count_anew():
    silence = InactiveLossMonitor({"pixel_relation": 1.0}, steps=3)
    quiet, loud = {"total": 1.0, "pixel_relation": 0.0}, {"total": 1.0, "pixel_relation": 0.5}
    steps = [quiet, quiet, loud, quiet, quiet, quiet, quiet, loud, quiet, quiet, quiet]
    warned = [step for step, values in enumerate(steps) if silence.observe(values)]
    assert warned == [5, 10]


def test_a_session_counts_on_where_the_one_before_ended():
    quiet, warned, counted = {"total": 1.0, "pixel_relation": 0.0}, [], []
    for step in range(1, 9):  # killed after each two steps
        if step % 2:
            silence = InactiveLossMonitor({"pixel_relation": 1.0}, steps=5, counted=counted)
        warned += [(step, warning) for warning in silence.observe(quiet)]
        counted = json.loads(json.dumps(silence.counts))
    assert warned == [(5, "distillation term pixel_relation has been 0 for 5 steps")]
    assert counted == [["distillation term pixel_relation", "0", 8, True]]
    silence.observe({**quiet, "pixel_relation": 0.5})
    assert silence.counts == []


def test_fewer_steps_than_were_counted_name_a_term_at_once():
    quiet = {"total": 1.0, "pixel_relation": 0.0}
    silence = InactiveLossMonitor({"pixel_relation": 1.0}, steps=100)
    assert not any(silence.observe(quiet) for _ in range(20))
    lowered = InactiveLossMonitor({"pixel_relation": 1.0}, steps=10, counted=silence.counts)
    assert [len(lowered.observe(quiet)) for _ in range(3)] == [1, 0, 0]


def test_detection_terms_and_the_gradient_are_watched_for_0():
    assert "loss term box_loss has been 0" in warned({"box_loss": 0.0}, 200)[-1][0]
    assert "gradient" in warned({"gradient_norm": 0.0}, 200)[-1][0]
    assert not any(warned({"box_loss": 1e-9, "gradient_norm": 1e-9}, 300))
