"""CrossKD: its equation in NumPy, and the invariants that hold for the other distillers too."""

from __future__ import annotations

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import drkd_jax
from drkd_jax.distill import distill_config
from drkd_jax.distill.baselines.crosskd import aligned, quality_focal
from drkd_jax.distill.config import TERMS
from drkd_jax.errors import UserError
from drkd_jax.types import FeatureSpec
from tests.distill.common import convolved, make, pyramid, targets
from tests.training import tiny

ALONE = {**dict.fromkeys(TERMS), "crosskd": {"weight": 1.0, "box": 0.5}}
STRIDES, SIZE = (8, 16), (32, 44)  # of each image of `targets`
STUDENT, TEACHER = pyramid(0, 4), pyramid(1, 6)
CLASSES, ANCHORS = 3, 2
GIVEN = targets()


def towers(seed: int, channels: int):
    sides = pyramid(seed, channels).maps, pyramid(seed + 1, channels).maps
    return tuple(zip(*sides, strict=True))


OF_STUDENT, OF_TEACHER = towers(2, 4), towers(4, 6)
RANDOM = np.random.default_rng(9)
KERNELS = [
    (RANDOM.normal(0, 0.15, (3, 3, 6, outputs * ANCHORS)).astype(np.float32), bias)
    for outputs, bias in ((CLASSES, -2.0), (4, 0.1))
]


def head(classes, boxes):
    """One convolution of each branch."""
    found = []
    for x, (kernel, bias), outputs in zip((classes, boxes), KERNELS, (CLASSES, 4), strict=True):
        numbers = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(
            jax.nn.relu(x), kernel, (1, 1), "SAME", dimension_numbers=numbers
        )
        found.append((y + bias).reshape(x.shape[0], -1, outputs))
    return tuple(found)


class Module:
    """The term as one program: its loss, the gradients by both sides' heads, diagnostics."""

    def __init__(self):
        module = make(ALONE, STUDENT, TEACHER)
        self.graph, self.params, self.rest = nnx.split(module, nnx.Param, ...)

    @property
    def kernels(self):
        return [
            np.asarray(f.kernel[...], np.float64)
            for f in nnx.merge(self.graph, self.params, self.rest).map_terms["crosskd"].adaptation
        ]

    @functools.partial(jax.jit, static_argnums=0)
    def __call__(self, student, teacher, given):
        def loss(student, teacher, params):
            module = nnx.merge(self.graph, params, self.rest, copy=True)
            more = given.boxes, given.valid, given.sizes, given.image_valid
            responses = drkd_jax.Responses(student, teacher, head)
            out = module(STUDENT.maps, TEACHER.maps, *more, responses=responses)
            return out.losses["crosskd"], out

        return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(student, teacher, self.params)

    def loss(self, student=OF_STUDENT, teacher=OF_TEACHER, given=GIVEN):
        return float(self(student, teacher, given)[0][0])


@pytest.fixture(scope="module")
def module():
    return Module()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def decoded(deltas, anchor):
    """Boxes from deltas at an arbitrary anchor, on which the loss must not depend."""
    x, y, w, h = anchor
    cx, cy = x + deltas[..., 0] * w, y + deltas[..., 1] * h
    w, h = w * np.exp(deltas[..., 2]), h * np.exp(deltas[..., 3])
    return np.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], -1)


def giou(a, b):
    def area(sides):
        return np.maximum(sides, 0).prod(-1)

    common = area(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]))
    around = area(np.maximum(a[..., 2:], b[..., 2:]) - np.minimum(a[..., :2], b[..., :2]))
    union = area(a[..., 2:] - a[..., :2]) + area(b[..., 2:] - b[..., :2]) - common
    return common / union - (around - union) / around


def of_numpy(module) -> float:
    """The equation in NumPy, with images on a canvas of zeros and anchors of some size."""
    sums = np.zeros(3)
    for level, stride in enumerate(STRIDES):
        high, wide = (-(-side // stride) for side in SIZE)
        said = []
        for branch, (kernel, bias) in enumerate(KERNELS):
            s, t = (
                np.asarray(x[level][branch][:, :high, :wide], np.float64)
                for x in (OF_STUDENT, OF_TEACHER)
            )
            s = s @ module.kernels[branch]
            axes = (0, 1, 2)
            s = (s - s.mean(axes)) / (s.std(axes, ddof=1) + 1e-6)
            s = s * t.std(axes, ddof=1) + t.mean(axes)
            canvas = np.zeros((*OF_TEACHER[level][branch].shape[:3], 6))
            of_side = []
            for x in (s, t):
                canvas[:, :high, :wide] = np.maximum(x, 0)
                y = np.stack([convolved(one, kernel, bias) for one in canvas])[:, :high, :wide]
                of_side.append(y.reshape(*y.shape[:3], ANCHORS, -1))
            said.append(of_side)
        (found, sure), (deltas, towards) = said
        p, soft = sigmoid(found), sigmoid(sure)
        entropy = -soft * np.log(p) - (1 - soft) * np.log(1 - p)
        weights = soft.max(-1)
        apart = 1 - giou(*(decoded(x, (30.0, -7.0, 48.0, 21.0)) for x in (deltas, towards)))
        sums += (abs(p - soft) * entropy).sum(), (weights * apart).sum(), weights.sum()
    return (sums[0] + 0.5 * sums[1]) / sums[2]


def test_against_numpy(module):
    assert module.loss() == pytest.approx(of_numpy(module), rel=8e-7)


def padded(side, value):
    found = []
    for pair, stride in zip(side, STRIDES, strict=True):
        inside = np.zeros(pair[0].shape[1:3], bool)
        inside[: -(-SIZE[0] // stride), : -(-SIZE[1] // stride)] = True
        found.append(tuple(jnp.where(inside[None, :, :, None], x, value) for x in pair))
    return tuple(found)


def test_padded_pixels_change_nothing(module):
    assert module.loss(padded(OF_STUDENT, 7.0), padded(OF_TEACHER, -5.0)) == module.loss()


def test_filling_images_change_nothing(module):
    given = GIVEN._replace(image_valid=jnp.asarray([True, False]))

    def other(side, value):
        return jax.tree.map(lambda x: x.at[1].set(value), side)

    results = [module.loss(other(OF_STUDENT, v), other(OF_TEACHER, -v), given) for v in (1.0, 50.0)]
    assert results[0] == results[1] > 0


def test_the_order_of_images_changes_nothing(module):
    turned = jax.tree.map(lambda x: x[::-1], (OF_STUDENT, OF_TEACHER, GIVEN))
    assert module.loss(*turned) == pytest.approx(module.loss(), rel=1e-6)


def test_devices_change_nothing():
    process = tiny.python("-m", "tests.distill.baselines.crosskd_on_devices", devices=2)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    found = json.loads(out.splitlines()[-1])
    assert found["devices"] == 2
    assert max(found["off"]) < 1e-6, found


def test_boxes_change_nothing_and_may_be_none(module):
    assert module.loss(given=targets((0, 0))) == module.loss()


def test_no_image_at_all_is_0(module):
    none = GIVEN._replace(image_valid=jnp.zeros(2, bool))
    (loss, _), gradients = module(OF_STUDENT, OF_TEACHER, none)
    assert float(loss) == 0
    assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(gradients))


def test_it_pulls_at_the_student_and_not_at_the_teacher(module):
    (_, out), (student, teacher, params) = module(OF_STUDENT, OF_TEACHER, GIVEN)
    for x in (*jax.tree.leaves(student), *jax.tree.leaves(params)):
        assert np.abs(np.asarray(x)).max() > 0
    assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(teacher))
    found = {name: float(value) for name, value in out.diagnostics.items()}
    assert set(found) == {f"crosskd/{name}" for name in ("P3/loss", "P4/loss", "classes", "boxes")}
    parts = found["crosskd/classes"] + 0.5 * found["crosskd/boxes"]
    assert found["crosskd/P3/loss"] + found["crosskd/P4/loss"] == pytest.approx(parts, rel=1.4e-7)


def test_the_teachers_own_answers_are_the_least():
    sure, deltas = (jnp.asarray(RANDOM.normal(0, 2, (1, 50, n)), jnp.float32) for n in (3, 4))

    def classes(x):
        return quality_focal(x, sure).sum()

    def boxes(x):
        unit = jnp.broadcast_to(jnp.asarray([0.0, 0, 1, 1]), deltas.shape)
        both = (drkd_jax.boxes.decode(unit, y) for y in (x, 0.2 * deltas))
        return (1 - drkd_jax.boxes.generalized_iou(*both)).sum()

    for function, least in ((classes, sure), (boxes, 0.2 * deltas)):
        # One operation at a time: fused, the two sides' sigmoids differ in a last digit.
        value, gradient = jax.value_and_grad(function)(least)
        assert float(value) == 0
        np.testing.assert_allclose(gradient, 0, atol=8e-7)
        for step in (-0.1, 0.1):
            assert float(function(least + step)) > 0.5


def test_aligned_has_the_other_maps_statistics():
    (s, _), (t, _) = towers(2, 6)[0], OF_TEACHER[0]
    mask = jnp.ones(s.shape[:3], bool).at[:, 4:].set(False)
    inside = np.asarray(aligned(3 * s + 5, t, mask))[:, :4]
    for of in (np.mean, np.std):
        np.testing.assert_allclose(of(inside, (0, 1, 2)), of(t[:, :4], (0, 1, 2)), atol=5e-6)
    np.testing.assert_allclose(aligned(t, t, mask)[:, :4], t[:, :4], atol=1e-5)


def test_off_by_default_and_without_responses_named():
    spec = FeatureSpec((4, 4), STRIDES)
    assert "crosskd" in TERMS
    assert "crosskd" not in distill_config({}).terms
    on = drkd_jax.Distiller(distill_config(ALONE), spec, spec, rngs=nnx.Rngs(0))
    assert on.head_layers == 3
    assert on.teacher_scale is None
    assert not jax.tree.leaves(nnx.state(on, nnx.Param))  # f of equal widths
    more = GIVEN.boxes, GIVEN.valid, GIVEN.sizes
    with pytest.raises(UserError, match=r"distill\.crosskd has a weight.*without responses="):
        on(STUDENT.maps, STUDENT.maps, *more)
    uneven = FeatureSpec((4, 8), STRIDES)
    with pytest.raises(UserError, match=r"distill\.crosskd: .*equal channels.*\(4, 4\), \(8, 4\)"):
        drkd_jax.Distiller(distill_config(ALONE), uneven, spec, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("student", "teacher", "words"),
    [
        (OF_STUDENT[:1], OF_TEACHER, r"responses\.student is of 1 levels, .* has 2 \(stride 8 "),
        (OF_STUDENT, OF_TEACHER[:1], r"responses\.teacher is of 1 levels"),
        ([x for x, _ in OF_STUDENT], OF_TEACHER, r"responses\.student\[0\], .*a pair of maps"),
        (OF_STUDENT, OF_STUDENT, r"responses\.teacher\[0\], of stride 8: its map of classes has"),
        (
            OF_STUDENT[::-1],
            OF_TEACHER,
            r"responses\.student\[0\].* its pyramid's shape, \(2, 6, 8, 4",
        ),
    ],
)
def test_heads_maps_that_are_not_the_pyramids_are_named(student, teacher, words):
    on = make(ALONE, STUDENT, TEACHER)
    more = GIVEN.boxes, GIVEN.valid, GIVEN.sizes
    with pytest.raises(UserError, match=words):
        on(STUDENT.maps, TEACHER.maps, *more, responses=drkd_jax.Responses(student, teacher, head))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"layers": -1}, r"distill\.crosskd\.layers = -1"),
        ({"box": -0.5}, r"distill\.crosskd\.box = -0\.5"),
        ({"tau": 1.0}, r"unknown key distill\.crosskd\.tau"),
    ],
)
def test_wrong_settings_are_named(values, message):
    with pytest.raises(UserError, match=message):
        distill_config({"crosskd": values})
