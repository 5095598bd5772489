"""Which checkpoints and files can be teachers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from drkd_jax import models
from drkd_jax.errors import UserError
from drkd_jax.fault_tolerance.checkpoint import Checkpoints
from drkd_jax.models.arrays import flatten
from drkd_jax.step.sharding import data_mesh, put_everywhere
from drkd_jax.step.state import new_state, split_module
from drkd_jax.training.setup import build_run
from drkd_jax.training.teacher import compare_classes, for_data, load_teacher
from drkd_jax.types import Detections
from tests.training import tiny

CATEGORIES = [[1, "disc"], [2, "bitten disc"]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Work folders whose best checkpoint is from step 0 and from step 5."""
    config = tiny.config()
    settings = {key: value for key, value in config["student"].items() if key != "init"}
    student = models.init_detector(settings, 2, 7)
    state = new_state({"student": split_module(student, student.is_trained)}, optax.sgd(0.1))
    state = put_everywhere(state, data_mesh())
    folders = {}
    for step in (0, 5):
        folder = folders[step] = tmp_path_factory.mktemp(f"step{step}")
        checkpoints = Checkpoints(folder, 1)
        state = type(state)(jnp.int32(step), state.params, state.model_state, state.opt_state)
        about = {"config": config, "categories": CATEGORIES, "numbers": {"AP": 0.25}}
        checkpoints.save_best(state, about)
        checkpoints.close()
    return folders, flatten(state.params["student"])


def test_no_checkpoint_is_refused():
    with pytest.raises(UserError, match=r"untrained.*checkpoint is empty.*init = 'random'"):
        load_teacher({"checkpoint": "", "init": ""}, 2, 0)


def test_a_checkpoint_of_step_0_is_refused(trained):
    folders, _ = trained
    with pytest.raises(UserError, match=r"untrained: .* is one of step 0"):
        load_teacher({"checkpoint": str(folders[0])}, 2, 0)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="nobody: no such folder"):
        load_teacher({"checkpoint": str(tmp_path / "nobody")}, 2, 0)


def test_random_weights_pass_when_asked_for_by_name():
    settings = tiny.config(distilled=True)["teacher"]
    teacher = load_teacher(settings, 2, 0)
    assert "random weights" in teacher.origin
    assert teacher.detector.spec.channels[0] == 24
    with pytest.raises(UserError, match="needs the teacher's model settings"):
        load_teacher({"init": "random"}, 2, 0)
    with pytest.raises(UserError, match=r"checkpoint = mine\.pth would not be read, since"):
        load_teacher(settings | {"checkpoint": "mine.pth"}, 2, 0)


def test_the_model_comes_from_the_checkpoint_s_own_config(trained):
    folders, params = trained
    teacher = load_teacher({"checkpoint": str(folders[5]), "dtype": "bfloat16"}, 9, 0)
    assert teacher.origin == f"{folders[5]}, step 5, AP 0.2500 on shapes:6:1"
    assert teacher.categories == ("disc", "bitten disc")
    assert not hasattr(teacher.detector, "head")
    found = flatten(teacher.arrays)
    kept = {name for name in params if not name.startswith("head.")}
    assert set(found) == kept  # the heads are not needed, and are not kept
    for name in kept:
        value = params[name]
        assert found[name].dtype == ("bfloat16" if value.ndim > 1 else "float32"), name
        np.testing.assert_array_equal(found[name], value.astype(found[name].dtype))


def test_model_settings_beside_a_checkpoint_have_to_agree(trained):
    folders, _ = trained
    student = tiny.config()["student"]
    settings = {"checkpoint": str(folders[5]), "channels": student["channels"]}
    load_teacher(settings, 2, 0)
    with pytest.raises(UserError, match="differ in channels"):
        load_teacher({**settings, "channels": 99}, 2, 0)


def test_differing_classes_are_told():
    assert compare_classes((), ("a",)) is None
    assert compare_classes(("a", "b"), ("a", "b")) is None
    assert "teacher knows 2 classes (a, b), the student 1 (a)" in compare_classes(
        ("a", "b"), ("a",)
    )


def test_classes_of_another_order_are_found_by_name(trained):
    folders, _ = trained
    teacher = load_teacher({"checkpoint": str(folders[5]), "evaluate": True}, 2, 0)
    turned = for_data(teacher, [(4, "bitten disc"), (9, "disc")])
    assert turned.categories == ("bitten disc", "disc")
    assert (turned.detector.class_ids, turned.detector.num_classes) == ((1, 0), 2)
    assert "found by their names, in another order" in turned.origin
    labels = np.int32([[0, 1, 1]])
    found = Detections(
        np.zeros((1, 3, 4), np.float32),
        np.float32([[0.9, 0.8, 0.7]]),
        labels,
        np.full((1, 3), True),
    )
    np.testing.assert_array_equal(turned.detector.from_head(found).labels, 1 - labels)
    fewer = for_data(turned, [(1, "disc")])
    kept = fewer.detector.from_head(found)
    np.testing.assert_array_equal(kept.valid, [[True, False, False]])
    np.testing.assert_array_equal(kept.labels[:, 0], [0])
    assert for_data(turned, [(1, "screw")]) is turned


def test_classes_that_are_written_another_way_are_the_same(trained):
    folders, _ = trained
    teacher = load_teacher({"checkpoint": str(folders[5])}, 2, 0)
    alike = for_data(teacher, [(4, "Disc"), (9, "bitten_disc")])
    assert compare_classes(alike.categories, ("Disc", "bitten_disc")) is None
    assert (alike.graph, alike.origin) == (teacher.graph, teacher.origin)


def test_the_student_starts_from_another_run_s_weights(trained):
    folders, params = trained
    config = tiny.config()
    config["student"]["init"] = str(folders[5])
    run = build_run(config)  # 6 classes here: the head's last layer does not fit
    mine = flatten(run.state.params["student"])
    same = [name for name in mine if mine[name].shape == params[name].shape]
    assert 0 < len(same) < len(mine)
    for name in same:
        np.testing.assert_array_equal(mine[name], params[name])
    assert f"step 5: {len(same)} of {len(mine)} arrays (random: head." in run.student_origin


def test_the_same_seed_starts_the_student_the_same_with_and_without_a_teacher():
    plain = build_run(tiny.config()).state.params["student"]
    distilled = build_run(tiny.config(distilled=True)).state.params["student"]
    jax.tree.map(np.testing.assert_array_equal, plain, distilled)
