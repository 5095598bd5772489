"""Runs that continue in a work folder with missing files, or with files of another run."""

import json
import shutil

import pytest

from drkd_jax.data.sources import open_source
from drkd_jax.errors import UserError
from drkd_jax.monitoring.inactive_loss import InactiveLossMonitor
from drkd_jax.training import loop
from drkd_jax.training.evaluate import write_evaluation
from drkd_jax.weights.opening import load
from tests.training import tiny


@pytest.fixture(scope="module", autouse=True)
def _gradients_of_0():
    """Makes the monitor of these runs see a gradient of 0 at all steps."""
    observe = InactiveLossMonitor.observe
    with pytest.MonkeyPatch.context() as patch:
        none = {"gradient_norm": 0.0}
        patch.setattr(InactiveLossMonitor, "observe", lambda self, v: observe(self, {**v, **none}))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    config = tiny.config(steps=2, checkpoint_every=2, decay_at=(), silence_steps=3)
    config["data"]["canvases"] = ((64, 96),)
    workdir = tmp_path_factory.mktemp("run")
    return config, workdir, loop.train(config, workdir)


def test_a_run_made_shorter_than_it_is_ends_where_it_is(finished, tmp_path):
    config, whole, _ = finished
    shutil.copytree(whole, tmp_path / "run", ignore=shutil.ignore_patterns("best", "metrics.jsonl"))
    shorter = {**config, "train": {**config["train"], "steps": 1}}
    summary = loop.train(shorter, tmp_path / "run")
    assert (summary["steps"], summary["best_step"]) == (2, 2)
    assert summary["ended"] == "2 steps are done"


def test_a_run_made_longer_counts_silent_steps_on_and_is_not_too_short_any_more(finished, tmp_path):
    config, whole, before = finished
    assert before["warnings"][0].startswith("the warm-up of 3 steps does not end within the run of")
    shutil.copytree(whole, tmp_path / "run")
    longer = {**config, "train": {**config["train"], "steps": 4}}
    summary = loop.train(longer, tmp_path / "run")
    assert summary["steps"] == 4
    assert summary["warnings"][:-1] == before["warnings"][1:]
    assert summary["warnings"][-1] == "the gradient's norm has been 0 for 3 steps"


def test_a_finished_run_whose_best_checkpoint_is_gone_is_scored_again(finished, tmp_path):
    config, whole, before = finished
    shutil.copytree(whole, tmp_path / "run", ignore=shutil.ignore_patterns("best"))
    summary = loop.train(config, tmp_path / "run")
    assert summary["best"] == summary["final"] == before["final"]
    assert load(tmp_path / "run", which="best").step == 2


def test_a_best_checkpoint_of_another_config_is_not_taken_for_this_run_s(finished, tmp_path):
    """The run was killed between its first evaluation and first checkpoint, and changed since."""
    config, whole, _ = finished
    shutil.copytree(whole / "best", tmp_path / "run" / "best")
    other = {**config, "train": {**config["train"], "learning_rate": 0.02}}
    with pytest.raises(UserError, match=r"learning_rate \(0.01 there, 0.02 here\)"):
        loop.train(other, tmp_path / "run")
    assert loop.train(config, tmp_path / "run")["best_step"] == 2


def test_what_was_scored_is_counted(finished, tmp_path):
    source = open_source(finished[0]["data"]["val"])
    for most, count in ((0, 6), (4, 4), (9, 6)):
        write_evaluation(tmp_path, 2, source, {"AP": 0.5}, [], most)
        assert json.loads((tmp_path / "eval.json").read_text())["images"] == count
