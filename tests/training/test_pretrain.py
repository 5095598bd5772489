"""The teacher's graph units, trained inside a small random teacher."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from drkd_jax.data.sources import Part, open_source
from drkd_jax.distill.graph_unit import GraphUnit
from drkd_jax.errors import UserError
from drkd_jax.fault_tolerance.interrupt import InterruptedRunError
from drkd_jax.models.arrays import flatten
from drkd_jax.training import loop, pretrain
from drkd_jax.training.pretrain import (
    UNITS_FILE,
    fingerprint,
    read_units,
    with_pretrained_units,
)
from drkd_jax.training.setup import build_run
from drkd_jax.training.teacher import load_teacher
from drkd_jax.types import Batch
from tests.training import tiny


def config(**distill):
    made = tiny.config(distilled=True)
    made["data"]["canvases"] = ((64, 96),)
    made["teacher"]["max_level"] = made["student"]["max_level"] = 5
    made["teacher"]["head_std"] = 0.1  # random heads that look at the map more than at their bias
    made["distill"] = {
        "pixel_relation": {"nodes": (4,), "teacher_modules": "pretrained"},
        "instance_relation": None,
        "instance_feature": None,
        "pretrain_steps": 8,
        "pretrain_rate": 0.05,
    } | distill
    return made


@pytest.fixture(scope="module")
def run():
    return build_run(config())


@pytest.fixture(scope="module")
def trained(run, tmp_path_factory):
    workdir, said = tmp_path_factory.mktemp("run"), []
    state = with_pretrained_units(run, run.state, workdir, said.append, lambda: False)
    return workdir, said, state


def units(state):
    return {
        name: np.array(leaf)
        for name, leaf in flatten(state.model_state["distiller"]).items()
        if name.startswith("pixel_relation.teacher.")
    }


def test_a_unit_that_starts_changes_no_bit():
    unit = GraphUnit(6, 4, normalize=True, rngs=nnx.Rngs(0))
    graph, weights, statistics = nnx.split(unit, pretrain._is_weight, ...)
    weights = pretrain._as_identity(nnx.as_pure(weights))
    assert np.any(weights["extend"]["kernel"] != 0)
    x = jax.random.normal(jax.random.key(1), (2, 9, 6))
    phi = nnx.merge(graph, weights, statistics)(x, jnp.ones((2, 9), bool), train=True)
    np.testing.assert_array_equal(phi, x)


def test_the_teacher_detects_better_with_its_units(run, trained):
    workdir, said, state = trained
    found = read_units(workdir / UNITS_FILE, fingerprint(run))
    print(f"loss {found.before:.4f} -> {found.after:.4f}")
    assert found.after < 0.95 * found.before
    assert found.images == 3  # every eighth of 24
    assert f"{found.before:.4f}" in said[-1]
    assert f"{found.after:.4f}" in said[-1]
    before, after = units(run.state), units(state)
    assert set(after) == {f"pixel_relation.teacher.{name}" for name in found.arrays}
    for name, array in found.arrays.items():
        np.testing.assert_array_equal(after[f"pixel_relation.teacher.{name}"], array)
    scales = [name for name in after if name.endswith("norm.scale")]
    assert scales
    assert all(np.any(after[name] != 0) for name in scales)
    assert all(np.any(after[name] != before[name]) for name in scales)


def test_nothing_else_of_the_run_changes(run, trained):
    _, _, state = trained
    own = flatten((run.state.params, run.state.opt_state, run.state.step))
    for name, leaf in flatten((state.params, state.opt_state, state.step)).items():
        np.testing.assert_array_equal(leaf, own[name], err_msg=name)
    rest, others = flatten(state.model_state), flatten(run.state.model_state)
    for name in rest.keys() | others.keys():
        if ".teacher." not in name:
            np.testing.assert_array_equal(rest[name], others[name], err_msg=name)
    # The optimiser of the run does not know the units: they stay as they are.
    assert not any(".teacher." in name for name in flatten(state.params["distiller"]))


def test_a_phase_that_is_done_is_not_done_again(run, trained, monkeypatch):
    workdir, _, state = trained
    monkeypatch.setattr(pretrain, "train_units", lambda *_: pytest.fail("trained again"))
    said = []
    again = with_pretrained_units(run, run.state, workdir, said.append, lambda: False)
    assert "as trained before" in said[0]
    for name, array in units(again).items():
        np.testing.assert_array_equal(array, units(state)[name])


def test_units_of_other_settings_or_a_broken_file_are_not_taken(run, trained, tmp_path):
    workdir, _, _ = trained
    path = workdir / UNITS_FILE
    assert read_units(path, "another") is None
    (tmp_path / "cut").write_bytes(path.read_bytes()[:200])
    assert read_units(tmp_path / "cut", fingerprint(run)) is None
    assert read_units(tmp_path / "nothing", fingerprint(run)) is None
    (tmp_path / "empty").touch()
    assert read_units(tmp_path / "empty", fingerprint(run)) is None


def test_the_fingerprint_is_of_all_that_the_units_learn_from(run):
    assert fingerprint(build_run(config(region_size=5))) == fingerprint(run)
    bgr, coarse = config(), config()
    bgr["teacher"]["data"] = {"channels": "bgr"}
    coarse["student"]["min_level"] = 5  # one level has a unit, where two had
    for other in (config(standardize_teacher=False), bgr, coarse):
        assert fingerprint(build_run(other)) != fingerprint(run)


def test_a_run_in_parts_trains_its_units_in_parts(run):
    """A batch that does not fit into memory as a whole does not fit in this phase either."""
    seen = []

    def loss_of(weights, statistics, arrays, batch, step):
        seen.append(batch.images.shape[0])
        x = batch.images.mean((1, 2, 3)) * batch.image_valid
        mean = x.sum() / batch.image_valid.sum()
        return (arrays * weights["w"] - mean) ** 2 + step, {"last": statistics["last"] + mean}

    images = np.arange(4, dtype=np.float32)[:, None, None, None] * np.ones((1, 2, 2, 3), np.float32)
    rows = {field: np.zeros(4, np.float32) for field in Batch._fields}
    batch = Batch(**rows | {"images": images, "image_valid": np.array([1, 1, 1, 0], bool)})
    given = {"w": jnp.float32(3)}, {"last": jnp.float32(0)}, jnp.float32(2), batch, jnp.float32(5)
    halves = dataclasses.replace(run, train=dataclasses.replace(run.train, accumulate=2))
    found = pretrain._in_parts(loss_of, halves, *given)
    assert set(seen) == {2}
    # Images 0 and 2, mean 1, and image 1 alone: 2/3 of (6 - 1)^2 and 1/3 of (6 - 1)^2.
    assert float(found.total) == pytest.approx(25 + 5, rel=2e-7)
    assert float(found.gradient["units"]["w"]) == pytest.approx(2 * 5 * 2, rel=2e-7)
    assert float(found.model_state["units"]["last"]) == 2.0
    alone = pretrain._in_parts(loss_of, halves, *given, learns=False)
    assert float(alone.total) == float(found.total)
    assert fingerprint(halves) != fingerprint(run)


def test_a_signal_ends_the_phase_and_the_run(monkeypatch, tmp_path):
    monkeypatch.setattr(loop, "with_pretrained_units", lambda *_: None)
    with pytest.raises(InterruptedRunError, match="while the teacher's units were trained"):
        loop.train(config(), tmp_path)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_teacher_that_cannot_detect_these_classes_is_refused(run):
    def given(**changes):
        return type(run)(**{**vars(run), **changes})

    other = given(teacher=run.teacher._replace(categories=("cat", "dog")))
    with pytest.raises(UserError, match=r"'pretrained' .* knows other classes than shapes:24"):
        pretrain._whole_teacher(other)
    broken = {**run.config, "teacher": {"checkpoint": "", "init": ""}}
    with pytest.raises(UserError, match="needs the teacher's heads"):
        pretrain._whole_teacher(given(config=broken))


def test_its_heads_are_read_by_the_classes_of_the_data(run, monkeypatch):
    names = tuple(category.name for category in run.train_source.categories)
    whole = load_teacher({**run.config["teacher"], "evaluate": True}, len(names), 0)
    turned = whole._replace(categories=names[::-1])
    monkeypatch.setattr(pretrain, "load_teacher", lambda *_: turned)
    known = dataclasses.replace(run, teacher=run.teacher._replace(categories=names))
    found = pretrain._whole_teacher(known)
    assert found.detector.class_ids == tuple(range(len(names)))[::-1]
    assert found.categories == names
    nameless = load_teacher({**run.config["teacher"], "evaluate": True}, 9, 0)
    monkeypatch.setattr(pretrain, "load_teacher", lambda *_: nameless)
    with pytest.raises(UserError, match="knows other classes than shapes:24"):
        pretrain._whole_teacher(run)


def test_a_part_of_a_source_is_a_source():
    source = open_source("shapes:6")
    part = Part(source, [4, 1])
    assert len(part) == 2
    assert part.meta(0) == source.meta(4)
    np.testing.assert_array_equal(part.record(1).image, source.record(1).image)
    truth = part.coco_ground_truth()
    assert {image["id"] for image in truth["images"]} == {source.meta(i).image_id for i in (1, 4)}
    wanted = sum(source.meta(i).num_boxes for i in (1, 4))
    assert len(truth["annotations"]) == wanted
