"""The loops of docs/your-own-loop.md with a small foreign detector."""

from __future__ import annotations

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import drkd_jax
from drkd_jax.errors import UserError

STUDENT = drkd_jax.FeatureSpec(channels=(4, 4), strides=(4, 8))
TEACHER = drkd_jax.FeatureSpec(channels=(6, 6), strides=(4, 8))
random = np.random.default_rng(0)
IMAGES = jnp.asarray(random.standard_normal((2, 32, 32, 3)), jnp.float32)
CORNERS = random.uniform(0, 20, (2, 4, 2))
BOXES = jnp.asarray(
    np.concatenate([CORNERS, CORNERS + random.uniform(3, 12, (2, 4, 2))], -1), jnp.float32
)
VALID = jnp.asarray([[True] * 4, [True] * 3 + [False]])
SIZES = jnp.asarray([[32, 32], [32, 28]])


class Foreign(nnx.Module):
    """Two convolutions and a pyramid of two levels, without code of ours."""

    def __init__(self, channels: int, rngs: nnx.Rngs):
        self.first = nnx.Conv(3, channels, (4, 4), strides=4, rngs=rngs)
        self.second = nnx.Conv(channels, channels, (2, 2), strides=2, rngs=rngs)

    def __call__(self, images: jax.Array) -> tuple[jax.Array, ...]:
        fine = self.first(images)
        return fine, self.second(nnx.relu(fine))


class ForeignLinen(linen.Module):
    """The same in linen."""

    @linen.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, ...]:
        fine = linen.Conv(4, (4, 4), strides=4)(images)
        return fine, linen.Conv(4, (2, 2), strides=2)(linen.relu(fine))


def detection_loss(maps: tuple[jax.Array, ...]) -> jax.Array:
    """A stand-in for a detector's own losses."""
    return sum(((x.mean(-1) - 1) ** 2).mean() for x in maps)


@pytest.fixture(scope="module")
def known():
    return Foreign(6, nnx.Rngs(7))(IMAGES)


def make() -> drkd_jax.Distiller:
    config = drkd_jax.DistillConfig(pixel_relation=drkd_jax.PixelRelationConfig(nodes=(4,)))
    return drkd_jax.Distiller(config, student=STUDENT, teacher=TEACHER, rngs=nnx.Rngs(0))


def test_ten_lines_of_nnx(known):
    both = nnx.List([Foreign(4, nnx.Rngs(1)), make()])
    optimizer = nnx.Optimizer(both, optax.adamw(1e-2), wrt=nnx.Param)
    before = jax.tree.map(
        jnp.copy, nnx.state(both[1].pixel_relation.teacher, drkd_jax.frozen.Frozen)
    )

    @nnx.jit
    def step(both, optimizer):
        def loss(both):
            maps = both[0](IMAGES)
            out = both[1](maps, known, BOXES, VALID, SIZES)
            return detection_loss(maps) + out.total, out.losses

        (value, losses), gradient = nnx.value_and_grad(loss, has_aux=True)(both)
        optimizer.update(both, gradient)
        return value, losses

    values = [step(both, optimizer) for _ in range(12)]
    assert float(values[-1][0]) < 0.9 * float(values[0][0])
    assert set(values[0][1]) == {"pixel_relation", "instance_relation", "instance_feature"}
    assert all(float(loss) > 0 for loss in values[0][1].values())
    # Adam moves everything that it is given, even by a gradient near 0: the teacher's modules stay.
    after = nnx.state(both[1].pixel_relation.teacher, drkd_jax.frozen.Frozen)
    assert jax.tree.leaves(before)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(old, new)


def test_plain_optax_around_a_linen_detector(known):
    student = ForeignLinen()
    graph, params, rest = nnx.split(make(), nnx.Param, ...)
    trained = {"student": student.init(jax.random.key(1), IMAGES), "distiller": params}
    tx = optax.sgd(0.05)
    opt_state = tx.init(trained)

    @jax.jit
    def step(trained, rest, opt_state):
        def loss(trained, rest):
            maps = student.apply(trained["student"], IMAGES)
            module = nnx.merge(graph, trained["distiller"], rest, copy=True)
            out = module(maps, known, BOXES, VALID, SIZES)
            return detection_loss(maps) + out.total, nnx.split(module, nnx.Param, ...)[2]

        (value, rest), gradient = jax.value_and_grad(loss, has_aux=True)(trained, rest)
        updates, opt_state_after = tx.update(gradient, opt_state, trained)
        return value, optax.apply_updates(trained, updates), rest, opt_state_after

    values = []
    for _ in range(8):
        value, trained, rest, opt_state = step(trained, rest, opt_state)
        values.append(float(value))
    assert values[-1] < 0.95 * values[0]
    assert float(rest["teacher_scale"]["variance"][...][0]) > 0


def call(student, teacher, boxes=BOXES, valid=VALID, sizes=SIZES):
    return make()(student, teacher, boxes, valid, sizes)


def test_maps_that_the_pyramid_does_not_promise_are_named(known):
    maps = Foreign(4, nnx.Rngs(1))(IMAGES)
    with pytest.raises(UserError, match=r"the student gives 1 maps; .* 2 levels \(stride 4, "):
        call(maps[:1], known)
    with pytest.raises(UserError, match=r"student's map 0, of stride 4, .* \(2, 4, 8, 8\); .* 4\]"):
        call(tuple(x.transpose(0, 3, 1, 2) for x in maps), known)
    with pytest.raises(UserError, match=r"the teacher's map 1, of stride 8, .* 6\]"):
        call(maps, (known[0], maps[1]))
    with pytest.raises(UserError, match=r"at stride 4 the student's .* \(2, 7, 8, 4\)"):
        call(tuple(x[:, :-1] for x in maps), known)
    with pytest.raises(UserError, match="both have to be of the same images"):
        call(maps, tuple(x[:1] for x in known))


def test_a_batch_without_a_row_for_boxes_has_no_box(known):
    maps = Foreign(4, nnx.Rngs(1))(IMAGES)
    none = call(maps, known, jnp.zeros((2, 0, 4)), jnp.zeros((2, 0), bool))
    filled = call(maps, known, valid=jnp.zeros((2, 4), bool))
    for name, loss in none.losses.items():
        np.testing.assert_array_equal(loss, filled.losses[name])


@pytest.mark.parametrize(
    "wrong",
    [
        "channels=(4, 4), strides=(8,)",
        "channels=4, strides=(8,)",
        "channels=(4,), strides=8",
        "channels=(4,), strides=(8,), kinds=('lateral', 'pool')",
    ],
)
def test_a_pyramid_says_its_levels_one_by_one(wrong):
    code = f"from drkd_jax import FeatureSpec; FeatureSpec({wrong})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "UserError: FeatureSpec." in found.stderr.splitlines()[-1]


def test_importing_it_pulls_in_no_part_of_the_training_program():
    heavy = "orbax tensorflow_datasets cv2 matplotlib grain pycocotools ml_collections tensorboardX"
    code = f"import sys, drkd_jax; print([m for m in {heavy.split()!r} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_settings_that_are_no_numbers_are_named():
    code = """
from drkd_jax.distill import distill_config
from drkd_jax.errors import UserError
wrong = {"cwd": {"temperature": "1"}, "fgd": {"relation": "0"}, "mgd": {"masked": None}}
for name, value in (*wrong.items(), ("crosskd", {"layers": 1.5}), ("max_boxes", 64.0)):
    try:
        distill_config({name: value})
    except UserError as error:
        print(str(error).replace(" must ", " = ").split(" = ")[0])
"""
    # In a process of its own, since here the types are checked first.
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    named = ["cwd.temperature", "fgd.relation", "mgd.masked", "crosskd.layers", "max_boxes"]
    assert found.stdout.split() == [f"distill.{name}" for name in named]
