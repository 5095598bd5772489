"""CrossKD inside the step: which heads can be crossed, and what of them is computed."""

from __future__ import annotations

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_array_equal

from drkd_jax import models
from drkd_jax.data.pipeline import train_loader
from drkd_jax.distill.baselines.crosskd import CrossKDConfig
from drkd_jax.errors import UserError
from drkd_jax.step.train_step import loss_terms
from drkd_jax.training.setup import build_run
from drkd_jax.training.teacher import Teacher, check_head, check_heads, for_data
from tests.training import tiny

TERM = CrossKDConfig(weight=1.0, layers=1)
OTHERS = ("pixel_relation", "instance_relation", "instance_feature")


def config(detector: str = "retinanet", **crosskd):
    values = tiny.config(detector, distilled=True)
    values["data"]["canvases"] = values["data"]["canvases"][:1]
    term = {"weight": 1.0, "layers": 1, **crosskd}
    values["distill"] = {**dict.fromkeys(OTHERS), "crosskd": term}
    return values


def detector(kind: str = "retinanet", classes: int = 3, **settings):
    own = {key: value for key, value in tiny.config(kind)["student"].items() if key != "init"}
    return models.abstract_detector(own | settings, classes)


def teacher(made, names=()):
    return Teacher(made, nnx.split(made)[0], {}, "a test", names, {})


NAMES = ("disc", "ring", "square")


@functools.cache
def student():
    return detector()


def test_heads_that_fit_pass():
    check_head(TERM, student(), "student")
    wider = detector(channels=40, head_convs=2)
    check_heads(TERM, student(), teacher(wider, NAMES), NAMES)
    check_heads(TERM, student(), teacher(wider), NAMES)
    check_heads(TERM, student(), teacher(wider, ("Disc", "RING", "square")), NAMES)


@pytest.mark.parametrize(
    ("made", "names", "message"),
    [
        ({"kind": "faster_rcnn"}, NAMES, "the teacher is a FasterRCNN"),
        ({"head_convs": 0}, NAMES, r"layers = 1, and the teacher's head has only 0"),
        ({"anchors": {"scale": 2.0, "octaves": 3}}, NAMES, "student's anchors have sides of"),
        ({"anchors": {"scale": 4.0, "octaves": 2}}, NAMES, "student's anchors have sides of"),
        ({}, ("disc", "ring", "cube"), r"knows 3 classes \(disc, ring, cube\)"),
        ({"classes": 4}, (), "head knows 4 classes without names, the student 3"),
    ],
)
def test_other_teachers_are_refused_with_the_key(made, names, message):
    with pytest.raises(UserError, match=rf"^distill\.crosskd.*{message}.*crosskd\.weight = 0"):
        check_heads(TERM, student(), teacher(detector(**made), names), NAMES)


def test_whole_pixels_for_sides_are_the_same_anchors():
    rounded = detector(anchors={"scale": 4.0, "sides": (4.0, 5.0, 6.375)})
    check_heads(TERM, student(), teacher(rounded, NAMES), NAMES)


def test_other_students_are_refused_with_the_key():
    with pytest.raises(UserError, match=r"^distill\.crosskd.*the student is a FasterRCNN"):
        build_run(config("faster_rcnn"))
    with pytest.raises(UserError, match=r"crosskd\.layers = 3.*config\.student\.head_convs"):
        check_head(CrossKDConfig(weight=1.0), student(), "student")


@pytest.mark.parametrize(
    ("names", "places"),
    [(("ring", "cube", "square", "disc"), [3, 0, 2]), (("ring", "square", "disc"), [2, 0, 1])],
)
def test_a_teacher_of_other_classes_answers_for_those_of_the_data(names, places):
    """The teacher has more classes, or the same ones in another order."""
    made = teacher(detector(classes=len(names)), names)
    made = for_data(made, list(enumerate(NAMES)))
    check_heads(TERM, student(), made, NAMES)
    graph, state = nnx.split(made.detector)
    ones = jnp.ones((1, 2, 3, 16))

    def answers(state):
        own = nnx.merge(graph, state)
        return own.responses(ones, ones, 1), own.head.after(ones, ones, 1)

    filled = jax.tree.map(
        lambda x: np.cos(np.arange(x.size, dtype=np.float32)).reshape(x.shape), state
    )
    (logits, deltas), (every, same) = jax.jit(answers)(filled)
    assert_array_equal(logits, every[..., places])
    assert_array_equal(deltas, same)


@pytest.fixture(scope="module")
def traced():
    """A run whose teacher equals its student, by the same seed; the losses of its first batch."""
    values = config()
    values["teacher"].update(copy.deepcopy({**values["student"], "init": "random"}))
    run = build_run(values)
    loader = train_loader(run.train_source, run.pipeline)
    batch = run.put(next(loader))
    loader.close()

    def losses(teacher):
        given = run.state.params, run.state.model_state, teacher, batch, run.state.step
        return loss_terms(run.recipe, *given)[1][0]

    return run, batch, jax.jit(losses).trace(run.teacher_arrays)


def count(jaxpr) -> int:
    """Number of convolutions in a program, including inner calls."""
    return str(jaxpr).count("conv_general_dilated[")


def test_each_head_is_gone_through_once(traced):
    run, batch, program = traced
    images = jnp.zeros(batch.images.shape)
    pyramid = count(jax.make_jaxpr(lambda x: run.teacher.detector.features(x).maps)(images))
    # For 2 levels and 2 branches: a layer and an output on each side, and another output for the
    # student's maps in the teacher's head.
    assert count(program.jaxpr) == 2 * pyramid + 2 * 2 * (2 + 2 + 1)


def test_a_teacher_with_the_students_weights_has_nothing_to_teach(traced):
    run, _, program = traced
    call = program.lower().compile()
    other = jax.tree.map(lambda x: jax.device_put(np.roll(x, 1), x.sharding), run.teacher_arrays)
    same = call(run.teacher_arrays)
    assert float(same["crosskd"]) < 2.5e-6
    assert float(call(other)["crosskd"]) > 1e-2
