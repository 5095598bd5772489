"""The text agrees with the numbers: it claims no gain that the run does not show."""

from __future__ import annotations

import pytest

from drkd_jax.demo import results
from drkd_jax.report.paired import Interval
from drkd_jax.report.tables import points


def interval(difference: float, half: float) -> Interval:
    return Interval(difference, difference - half, difference + half)


GOOD_TEACHER = interval(0.08, 0.02)


def said(teacher: Interval, gains: list[Interval], plain: list[float]) -> str:
    return " ".join(results.verdict(teacher, gains, plain, 200))


def test_one_seed_never_claims_a_gain():
    words = said(GOOD_TEACHER, [interval(0.05, 0.01)], [0.2])
    assert "a gain larger than the choice of the 200 validation images explains" in words
    assert "no claim of a gain rests on this run" in words
    assert "it has something to teach" in words


def test_one_seed_within_the_images():
    words = said(GOOD_TEACHER, [interval(0.005, 0.01)], [0.2])
    assert "neither a gain nor a loss" in words
    assert "+0.5" in words
    assert "-0.5 to +1.5" in words


@pytest.mark.parametrize("difference", [-0.03, 0.0])
def test_teacher_no_better(difference):
    words = said(interval(difference, 0.001), [interval(0.05, 0.01)], [0.2])
    assert "The teacher is no better than the plain student" in words


def test_teacher_hardly_better():
    assert "hardly better" in said(interval(0.01, 0.02), [interval(0.05, 0.01)], [0.2])


def test_seeds_decide_where_there_are_several():
    steady = [interval(v, 0.05) for v in (0.020, 0.022, 0.021)]
    assert "a gain larger than what a seed changes" in said(GOOD_TEACHER, steady, [0.2, 0.21, 0.19])
    wild = [interval(v, 0.001) for v in (0.05, -0.02, 0.03)]
    words = said(GOOD_TEACHER, wild, [0.2, 0.23, 0.19])
    assert "within what a seed changes" in words
    assert "ranges over 4.0 points" in words
    loss = [interval(-v, 0.05) for v in (0.020, 0.022, 0.021)]
    assert "a loss larger than what a seed changes" in said(GOOD_TEACHER, loss, [0.2, 0.21, 0.19])


def test_runs_that_learned_nothing_are_said_to():
    words = "hardly learned to detect"
    assert words in said(interval(0.01, 0.001), [interval(0.005, 0.001)], [0.02])
    assert words not in said(interval(0.04, 0.001), [interval(0.005, 0.001)], [0.02])
    assert words not in said(interval(-0.04, 0.001), [interval(0.005, 0.001)], [0.2])
    assert words not in said(interval(0.01, 0.001), [interval(0.3, 0.001)], [0.02])


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.1234, "12.3"), (0.0, "0.0"), (-1.0, "-"), (None, "-"), (float("nan"), "-")],
)
def test_points(value, text):
    assert points(value) == text


def test_table_has_every_score_in_its_column():
    run = {
        "name": "teacher",
        "scores": {key: i / 100 for i, key in enumerate(results.COLUMNS.values())} | {"AP_L": -1.0},
        "parameters": 1_234_567,
        "steps": 300,
        "train_seconds": 61.4,
        "seconds": 80.2,
    }
    head, rule, row = results.scores_table([run]).splitlines()
    cells = [c.strip() for c in row.strip("|").split("|")]
    named = dict(zip([c.strip() for c in head.strip("|").split("|")], cells, strict=True))
    assert named["AP_S"] == "3.0"
    assert named["AP_L"] == "-"
    assert named["AR"] == "6.0"
    assert named["parameters"] == "1.23 M"
    assert named["training"] == "61 s"
    assert rule.count("|") == head.count("|")
