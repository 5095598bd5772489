"""The distillers of whole maps: their equations in NumPy, and invariants of the default form."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from drkd_jax.distill import distill_config, layers
from drkd_jax.distill.baselines.fgd import focal_masks
from drkd_jax.distill.baselines.mgd import kept_pixels
from drkd_jax.distill.baselines.pkd import standardized
from drkd_jax.distill.config import TERMS
from drkd_jax.errors import UserError
from drkd_jax.frozen import Frozen
from drkd_jax.monitoring.collapse import CollapseMonitor
from drkd_jax.monitoring.last_word import last_word
from drkd_jax.types import Features, Targets
from tests.distill.common import convolved, make, pyramid, relative, settings, targets

NAMES = ("feature_imitation", "pkd", "cwd", "mgd", "fgd")
DRKD = ("pixel_relation", "instance_relation", "instance_feature")
STUDENT, TEACHER = pyramid(0, 4), pyramid(1, 6)
ALONE = {**dict.fromkeys(DRKD), **{name: {"weight": 1.0} for name in NAMES}}
STRIDES = (8, 16)
SIZE = 32, 44  # of each image of `targets`


def test_more_numbers_than_32_bits_count_are_counted(monkeypatch):
    """64 images at stride 4 with 256 channels: maps that use no memory and are never read."""
    shape = (64, 200, 336)
    monkeypatch.setattr(layers, "squares", lambda *_: jnp.float32(2 * np.prod(shape) * 256.0))
    maps = np.broadcast_to(np.float32(0), (*shape, 256))
    assert layers.half_mean_square(maps, maps, jnp.ones(shape, bool)) == 1


def image_keys(*positions: int) -> jax.Array:
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(3), jnp.asarray(positions))


KEYS = image_keys(11, 12)


class Module:
    """All five terms as one program: losses, gradients by student and teacher, the state."""

    def __init__(self):
        module = make(ALONE, STUDENT, TEACHER)
        self.graph, self.params, self.rest = nnx.split(module, nnx.Param, ...)

    def merged(self):
        return nnx.merge(self.graph, self.params, self.rest, copy=True)

    @functools.partial(jax.jit, static_argnums=0)
    def __call__(self, student, teacher, given: Targets, keys):
        def losses(student, teacher):
            module = self.merged()
            more = given.boxes, given.valid, given.sizes, given.image_valid
            out = module(student, teacher, *more, keys=keys)
            rest = nnx.split(module, nnx.Param, ...)[2]
            stacked = jnp.stack([out.losses[name] for name in NAMES])
            return stacked, (out.losses, out.diagnostics, rest)

        return jax.jacrev(losses, (0, 1), has_aux=True)(student, teacher)

    def losses(self, student=STUDENT, teacher=TEACHER, given=None, keys=KEYS):
        found = self(student.maps, teacher.maps, targets() if given is None else given, keys)
        return {name: float(value) for name, value in found[1][0].items()}


@pytest.fixture(scope="module")
def module():
    return Module()


def cut(side: Features) -> list[list[np.ndarray]]:
    """Maps by level and image, without padding, in float64."""
    return [
        [np.asarray(one[: -(-SIZE[0] // k), : -(-SIZE[1] // k)], np.float64) for one in x]
        for x, k in zip(side.maps, STRIDES, strict=True)
    ]


def sides(module: Module, term: str) -> list[tuple[list[np.ndarray], list[np.ndarray]]]:
    """f(s) and the scaled t, by level and image."""
    adaptation = module.merged().map_terms[term].adaptation
    found = []
    for level, (s, t) in enumerate(zip(cut(STUDENT), cut(TEACHER), strict=True)):
        kernel = np.asarray(adaptation[level].kernel[...], np.float64)
        bias = adaptation[level].bias[...] if hasattr(adaptation[level], "bias") else 0
        deviation = np.sqrt(((np.stack(t) - np.stack(t).mean((0, 1, 2))) ** 2).mean())
        found.append(([x @ kernel + np.asarray(bias) for x in s], [x / deviation for x in t]))
    return found


def test_feature_imitation_against_numpy(module):
    expected = sum(
        0.5 * np.mean((np.stack(t) - np.stack(s)) ** 2)
        for s, t in sides(module, "feature_imitation")
    )
    assert module.losses()["feature_imitation"] == pytest.approx(expected, rel=7e-7)


def test_pkd_is_one_minus_pearsons_r(module):
    expected = 0
    for s, t in sides(module, "pkd"):
        s, t = (np.stack(x).reshape(-1, 6) for x in (s, t))
        r = [np.corrcoef(s[:, c], t[:, c])[0, 1] for c in range(6)]
        expected += (1 - 1 / len(s)) * np.mean(1 - np.asarray(r))  # the deviation is over n - 1
    assert module.losses()["pkd"] == pytest.approx(
        expected, rel=1e-5
    )  # the 1e-6 beside the deviation


def softmax(x: np.ndarray, axis: int | None = None) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum(axis, keepdims=axis is not None)


def test_cwd_against_numpy(module):
    expected = 0
    for level in sides(module, "cwd"):
        for s, t in zip(*level, strict=True):
            p, q = (softmax(x.reshape(-1, 6), 0) for x in (t, s))
            expected += (p * np.log(p / q)).sum() / 6 / 2
    assert module.losses()["cwd"] == pytest.approx(expected, rel=7e-7)


def test_mgd_against_numpy(module):
    expected = 0
    for level, (students, teachers) in enumerate(sides(module, "mgd")):
        made = module.merged().map_terms["mgd"].generation[level]
        kept = np.asarray(kept_pixels(KEYS, level, STUDENT.maps[level].shape[1:3], 0.65))
        for s, t, k in zip(students, teachers, kept, strict=True):
            x = s * k[: len(s), : s.shape[1], None]
            x = np.maximum(convolved(x, made.first[...], made.first_bias[...]), 0)
            x = convolved(x, made.second[...], made.second_bias[...])
            expected += ((t - x) ** 2).sum() / 2
    assert module.losses()["mgd"] == pytest.approx(expected, rel=7e-7)


def test_fgd_against_numpy(module):
    """Its context blocks start as the identity."""
    expected = 0
    for level, (students, teachers) in enumerate(sides(module, "fgd")):
        for i, (s, t) in enumerate(zip(students, teachers, strict=True)):
            pixels = [x.shape[0] * x.shape[1] * softmax(abs(x).mean(2) / 0.5) for x in (s, t)]
            channels = [6 * softmax(abs(x).mean((0, 1)) / 0.5) for x in (s, t)]
            objects = np.zeros(t.shape[:2])
            for box in np.asarray(targets().boxes[i])[np.asarray(targets().valid[i])]:
                cells = box / STRIDES[level]
                (x1, y1), (x2, y2) = np.floor(cells[:2]), np.ceil(cells[2:])
                for y, x in np.ndindex(objects.shape):
                    if y1 <= y <= y2 and x1 <= x <= x2:
                        objects[y, x] = max(objects[y, x], 1 / ((y2 - y1 + 1) * (x2 - x1 + 1)))
            background = (objects == 0) / max((objects == 0).sum(), 1)
            squares = ((t - s) ** 2 * channels[1]).sum(2) * pixels[1]
            apart = abs(pixels[0] - pixels[1]).sum() + abs(channels[0] - channels[1]).sum()
            parts = (squares * (objects + 0.5 * background)).sum() + 0.5 * apart
            expected += (parts + 0.005 * ((t - s) ** 2).sum()) / 2
    assert module.losses()["fgd"] == pytest.approx(expected, rel=7e-7)


def padded(side: Features, value: float) -> Features:
    maps = []
    for x, stride in zip(side.maps, STRIDES, strict=True):
        inside = np.zeros(x.shape[1:3], bool)
        inside[: -(-SIZE[0] // stride), : -(-SIZE[1] // stride)] = True
        maps.append(jnp.where(inside[None, :, :, None], x, value))
    return Features(tuple(maps), side.spec)


def test_padded_pixels_and_rows_change_nothing(module):
    expected = module.losses()
    assert all(value > 0 for value in expected.values())
    assert module.losses(padded(STUDENT, 7.0), padded(TEACHER, -5.0)) == expected
    given = targets()
    garbage = jnp.where(given.valid[..., None], given.boxes, jnp.asarray((5.0, 900.0, -30.0, 1e4)))
    assert module.losses(given=given._replace(boxes=garbage)) == expected


def test_filling_images_change_nothing(module):
    given = targets()._replace(image_valid=jnp.asarray([True, False]))
    results = [
        module.losses(
            Features(tuple(x.at[1].set(v) for x in STUDENT.maps), STUDENT.spec),
            Features(tuple(x.at[1].set(-v) for x in TEACHER.maps), TEACHER.spec),
            given,
        )
        for v in (1.0, 50.0)
    ]
    assert results[0] == results[1]
    assert all(value > 0 for value in results[0].values())


def test_the_order_of_images_changes_nothing(module):
    def turned(side: Features) -> Features:
        return Features(tuple(x[::-1] for x in side.maps), side.spec)

    given = jax.tree.map(lambda x: x[::-1], targets())
    found = module.losses(turned(STUDENT), turned(TEACHER), given, KEYS[::-1])
    assert found == pytest.approx(module.losses(), rel=2e-6)


@pytest.mark.parametrize("counts", [(0, 0), (0, 2)])
def test_no_boxes_are_finite(module, counts):
    gradients, (losses, found, _) = module(STUDENT.maps, TEACHER.maps, targets(counts), KEYS)
    assert all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves((gradients, losses)))
    assert (float(found["fgd/P3/objects"]) > 0) == (counts != (0, 0))


def test_no_image_at_all_is_0(module):
    none = targets()._replace(image_valid=jnp.zeros(2, bool))
    gradients, (losses, _, _) = module(STUDENT.maps, TEACHER.maps, none, KEYS)
    assert all(float(value) == 0 for value in losses.values())
    assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(gradients))


def test_every_term_pulls_at_the_student_and_none_at_the_teacher(module):
    (student, teacher), _ = module(STUDENT.maps, TEACHER.maps, targets(), KEYS)
    for x in student:
        assert (np.abs(np.asarray(x)).sum((1, 2, 3, 4)) > 0).all()
    assert all((np.asarray(x) == 0).all() for x in teacher)


def test_a_teacher_in_other_units_changes_nothing(module):
    ten = Features(tuple(10 * x for x in TEACHER.maps), TEACHER.spec)
    assert module.losses(teacher=ten) == pytest.approx(module.losses(), rel=2e-6)


def test_pkd_sees_no_scale_and_no_offset_of_a_channel():
    x, mask = STUDENT.maps[0], jnp.ones(STUDENT.maps[0].shape[:3], bool)
    other = x * jnp.asarray([1.0, 3.0, 0.2, 40.0]) + jnp.asarray([0.0, 5.0, -1.0, 9.0])
    np.testing.assert_allclose(standardized(other, mask), standardized(x, mask), atol=2e-5)
    assert (np.asarray(standardized(0 * x + 3, mask)) == 0).all()


def test_masks_belong_to_images():
    first = np.asarray(kept_pixels(KEYS, 0, (40, 50), 0.65))
    assert first.mean() == pytest.approx(0.35, abs=0.03)
    other = np.asarray(kept_pixels(image_keys(12, 11, 7), 0, (60, 80), 0.65))
    np.testing.assert_array_equal(other[[1, 0], :40, :50], first)  # any place, any canvas
    assert (np.asarray(kept_pixels(KEYS, 1, (40, 50), 0.65)) != first).any()
    assert not np.asarray(kept_pixels(KEYS, 0, (4, 5), 1)).any()
    assert np.asarray(kept_pixels(KEYS, 0, (4, 5), 0)).all()


def test_without_keys_every_training_call_masks_anew():
    one = pyramid(0, 4, (8,)), pyramid(1, 4, (8,))
    given = targets()
    module = make({**dict.fromkeys(TERMS), "mgd": {"weight": 1.0}}, *one)
    assert not hasattr(module.map_terms["mgd"].adaptation[0], "kernel")

    @jax.jit
    def call(rest):
        copy = nnx.merge(graph, params, rest, copy=True)
        sides = one[0].maps, one[1].maps
        out = copy(*sides, given.boxes, given.valid, given.sizes)
        return out.losses["mgd"], nnx.split(copy, nnx.Param, ...)[2]

    graph, params, rest = nnx.split(module, nnx.Param, ...)
    first, rest = call(rest)
    second, rest = call(rest)
    assert first != second
    assert float(nnx.merge(graph, params, rest).map_terms["mgd"].calls[...]) == 2


def test_with_keys_no_call_is_counted(module):
    _, (_, _, rest) = module(STUDENT.maps, TEACHER.maps, targets(), KEYS)
    moved = dict(nnx.to_flat_state(rest))
    assert float(moved[("map_terms", "mgd", "calls")][...]) == 0
    assert relative(rest, module.rest) > 0  # the teacher's scale


def test_a_box_paints_whole_cells_and_the_smallest_counts():
    boxes = jnp.asarray([[[0.0, 0, 39, 39], [9, 9, 15, 15], [0, 0, 900, 900]]])
    valid = jnp.asarray([[True, True, False]])
    mask = np.ones((1, 8, 8), bool)
    mask[:, :, 7] = False
    objects, background = (np.asarray(x[0]) for x in focal_masks(boxes, valid, mask, 8))
    assert objects[0, 0] == pytest.approx(1 / 36)
    assert objects[1, 1] == objects[2, 2] == pytest.approx(1 / 4)
    assert (objects[:, 7] == 0).all()
    assert background.sum() == pytest.approx(1)
    assert (background > 0).sum() == 7 * 8 - 36


@pytest.mark.parametrize("way", ["frozen", "average"])
def test_the_teachers_context_block_may_be_left_alone(way):
    both = pyramid(1, 4, (8,))
    module = make(
        {**dict.fromkeys(TERMS), "fgd": {"weight": 1, "teacher_modules": way}}, both, both
    )
    assert not jax.tree.leaves(nnx.state(module.map_terms["fgd"].teacher, nnx.Param))
    assert jax.tree.leaves(nnx.state(module.map_terms["fgd"].teacher, Frozen))


def test_off_by_default_and_freely_combined():
    plain = make(settings(), STUDENT, TEACHER)
    assert not plain.map_terms
    assert set(plain.weights) == set(DRKD)
    assert {path[0] for path, _ in nnx.to_flat_state(nnx.state(plain))} <= {*DRKD, "teacher_scale"}
    both = make({**settings("official"), "pkd": {"weight": 6}}, STUDENT, TEACHER)
    assert set(both.weights) == {*DRKD, "pkd"}
    assert both.teacher_scale is not None
    assert set(TERMS) >= {*DRKD, *NAMES}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pkdd": {"weight": 6.0}}, r"unknown key distill\.pkdd: known are .*pkd"),
        ({"pkd": {"tau": 1.0}}, r"unknown key distill\.pkd\.tau"),
        ({"pkd": 6.0}, r"distill\.pkd = 6\.0"),
        ({"cwd": {"temperature": 0.0}}, r"distill\.cwd\.temperature"),
        ({"mgd": {"masked": 1.5}}, r"distill\.mgd\.masked"),
        ({"fgd": {"temperature": -1.0}}, r"distill\.fgd\.temperature"),
        ({"fgd": {"teacher_modules": "shared"}}, r"'shared' is unknown"),
    ],
)
def test_wrong_settings_are_named(values, message):
    with pytest.raises(UserError, match=message):
        distill_config(values)


def test_the_watchers_know_them():
    lines = [
        {"distill/pkd": 1 - i / 10, "share/pkd": 0.3, "diag/pkd/P3/loss": 1 - i / 10}
        for i in range(6)
    ]
    word = last_word(lines, ("pkd",), student_ap=0.3, teacher_ap=0.5)
    assert "the student got it: pkd fell by" in word.text
    monitor = CollapseMonitor(warmup=1, patience=1)
    assert monitor.observe({"diag/fgd/P3/teacher_norm": 1.0}) == []
    assert "fgd/P3" in monitor.observe({"diag/fgd/P3/teacher_norm": 0.3})[0]
