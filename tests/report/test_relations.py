"""The relations of an image, from the modules in a run's checkpoint."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from drkd_jax.fault_tolerance.checkpoint import Checkpoints
from drkd_jax.report import relations
from drkd_jax.training.setup import build_run
from tests.training import tiny


def test_the_student_is_its_average_where_one_is_kept(tmp_path, monkeypatch):
    config = tiny.config(distilled=True, ema=0.5)
    run = build_run(config)
    blank = jax.tree.map(lambda x: x * 0, run.state.params["student"])
    state = dataclasses.replace(run.state, params={**run.state.params, "student": blank})
    checkpoints = Checkpoints(tmp_path, 1)
    checkpoints.save(state, {"config": config, "categories": run.categories})
    checkpoints.close()
    monkeypatch.setattr(relations, "build_run", lambda _: run)
    shown = relations.relations(config, tmp_path, 0)
    for maps in shown.pixel.values():
        assert all(np.ptp(x) > 0 for x in maps)


def test_a_term_of_weight_0_has_nothing_to_show(tmp_path, monkeypatch):
    config = tiny.config(distilled=True)
    for term in ("pixel_relation", "instance_relation"):
        config["distill"][term] = {"weight": 0.0}
    run = build_run(config)
    checkpoints = Checkpoints(tmp_path, 1)
    checkpoints.save(run.state, {"config": config, "categories": run.categories})
    checkpoints.close()
    monkeypatch.setattr(relations, "build_run", lambda _: run)
    shown = relations.relations(config, tmp_path, 0)
    assert (shown.pixel, shown.instance) == ({}, {})
