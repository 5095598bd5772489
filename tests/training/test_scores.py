"""When a run is scored, which score is the best, and when it stops early."""

import json

import pytest

from drkd_jax.distill import DistillConfig, PixelRelationConfig
from drkd_jax.step.settings import TrainSettings
from drkd_jax.training.async_metrics import largest_untrained_share
from drkd_jax.training.scores import Scores, judge_distillation


def scores(aps, *, patience=2, steps=100, best=None):
    """Evaluations after every tenth step; the best is the first with the highest score."""
    settings = TrainSettings(
        batch_size=1, learning_rate=1.0, steps=steps, eval_every=10, early_stop=patience
    )
    done = [(10 * (i + 1), {"AP": ap}) for i, ap in enumerate(aps)]
    if best is None and done:
        best = max(done, key=lambda pair: pair[1]["AP"])
    return Scores(settings, steps, done, best)


@pytest.mark.parametrize(
    ("aps", "patience", "over"),
    [
        ([], 2, False),
        ([0.1, 0.2, 0.1], 2, False),
        ([0.1, 0.2, 0.1, 0.2], 2, True),  # as good is not better
        ([0.1, 0.2, 0.1, 0.2], 0, False),
        ([0.2, 0.1], 1, True),
        ([-1.0, -1.0, -1.0], 2, True),  # nothing to find
    ],
)
def test_patience_counts_evaluations_since_the_best(aps, patience, over):
    assert bool(scores(aps, patience=patience).why_over()) == over


def test_its_words_name_step_and_key():
    words = scores([0.3, 0.1, 0.2]).why_over()
    assert "step 30 of 100: no better AP in 2 evaluations since step 10" in words
    assert "config.train.early_stop = 2" in words


def test_the_end_of_a_run_is_no_early_one():
    assert not scores([0.3, 0.1, 0.2], steps=30).why_over()


def test_a_best_checkpoint_from_before_a_kill_ends_nothing():
    """The run continues from before the best step; scores up to that step do not count."""
    found = scores([0.1, 0.1, 0.1], best=(50, {"AP": 0.4}))
    assert not found.why_over()
    assert not found.is_better({"AP": 0.4})
    found.done += [(step, {"AP": 0.2}) for step in (50, 60, 70)]
    assert found.why_over()


def test_where_there_is_nothing_to_find_nobody_is_said_to_reach_it(tmp_path):
    line = {"kind": "train", "step": 1, "distill/near": 1.0, "share/near": 0.5}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    words = judge_distillation(tmp_path, ("near",), -1.0, -1.0)["text"]
    assert words.startswith("What the teacher reaches is not known")
    words = judge_distillation(tmp_path, ("near",), 0.2, 0.4)["text"]
    assert words.startswith("The teacher had to teach (40.0 AP")


def test_a_branch_that_was_trained_is_not_called_untrained(tmp_path):
    """As in the run's monitor: only the share of a frozen unit counts."""
    line = {"kind": "train", "step": 1, "distill/pixel_relation": 1.0, "share/pixel_relation": 0.5}
    line["diag/pixel_relation/P3/teacher_variance"] = 4.0
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    for way, said in (("frozen", True), ("pretrained", False), ("trained", False)):
        share = largest_untrained_share(
            DistillConfig(pixel_relation=PixelRelationConfig(teacher_modules=way))
        )
        words = judge_distillation(tmp_path, ("pixel_relation",), 0.2, 0.4, share)["text"]
        assert ("75% of its target from an untrained branch" in words) == said


def test_an_evaluation_is_due_once():
    found = scores([0.1, 0.2])
    assert not found.due(20)
    assert found.due(30)
    assert not found.due(35)
    assert found.due(100)
    assert found.due(105)  # of a run that was made shorter than it already is
