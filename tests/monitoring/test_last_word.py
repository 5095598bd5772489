"""The final summary of a distillation, from the log lines of a run."""

from __future__ import annotations

import pytest

from drkd_jax.monitoring.last_word import last_word

TERMS = ("pixel_relation", "instance_relation")


def lines(end=0.5, share=0.1, entropy=0.7, variance=1.0, count=6):
    """Log lines in which both losses fall from 1 to `end`, halfway in the middle."""
    half = count // 2
    return [
        {
            "kind": "train",
            **{f"distill/{term}": 1.0 if i < half else end for term in TERMS},
            **{f"share/{term}": share for term in TERMS},
            "diag/pixel_relation/P3/teacher_variance": variance,
            "diag/instance_relation/P3/teacher_entropy": entropy if i else 0.0,
        }
        for i in range(count)
    ]


def test_three_times_yes():
    word = last_word(lines(), TERMS, student_ap=0.3, teacher_ap=0.5)
    assert "had to teach (50.0 AP, +20.0" in word.text
    assert "the terms carried it" in word.text
    assert "the student got it: pixel_relation fell by 50%" in word.text
    assert "To try next" not in word.text
    # Windows in which no image had a choice (entropy exactly 0) are no entropy.
    assert word.numbers["row_entropy/instance_relation"] == pytest.approx(0.7)
    assert word.numbers["teacher_gap"] == pytest.approx(0.2)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_few_windows_have_a_start_and_an_end_as_well(count):
    word = last_word(lines(count=count), TERMS)
    assert "the student got it: pixel_relation fell by" in word.text
    assert word.numbers["fall/instance_relation"] == pytest.approx(0.5)


def test_a_loss_that_rose_is_said_to_have_risen():
    word = last_word(lines(end=1e9), TERMS)
    assert "did not get it: pixel_relation rose, instance_relation rose" in word.text


def test_one_window_says_nothing_of_a_fall():
    word = last_word(lines(count=1), TERMS)
    assert "get it:" not in word.text
    assert "got it:" not in word.text
    assert "train.log_every" in word.text
    assert "To try next" not in word.text
    assert "fall/pixel_relation" not in word.numbers


@pytest.mark.parametrize(
    ("given", "aps", "said", "advice"),
    [
        ({}, (0.49, 0.5), "had little to teach", "a better teacher"),
        ({"entropy": 0.99}, (0.3, 0.5), "hardly carried", "lower distill.instance_relation.temp"),
        ({"entropy": 0.05}, (0.3, 0.5), "hardly carried", "raise distill.instance_relation.temp"),
        ({"variance": 4.0}, (0.3, 0.5), "75% of its target", "teacher_scale"),
        ({"share": 1e-5}, (0.3, 0.5), "hardly carried", "a larger distill.pixel_relation.weight"),
        ({"end": 0.99}, (0.3, 0.5), "did not get it", "more steps"),
        ({}, (None, None), "was not measured", ""),
        ({}, (-1.0, -1.0), "is not known: data.val has nothing to find", ""),
    ],
)
def test_each_no_is_named_with_what_to_try(given, aps, said, advice):
    word = last_word(lines(**given), TERMS, student_ap=aps[0], teacher_ap=aps[1])
    assert said in word.text
    assert advice in word.text


def test_a_teacher_of_other_classes_is_not_advised_to_be_scored():
    word = last_word(lines(), TERMS, student_ap=0.3, asked=True)
    assert "was not measured: its classes are not those of the data" in word.text
    assert "teacher.evaluate" not in word.text
