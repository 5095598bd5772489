import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drkd_jax import boxes
from tests import oracles

iou = jax.jit(boxes.pairwise_iou)
STDS = (0.1, 0.1, 0.2, 0.2)
UNSOUND = np.asarray([[0, 0, 0, 0], [5, 5, 3, 9], [np.nan, 0, 4, 4], [0, 0, np.inf, 3]], np.float32)


def test_area_of_degenerate_boxes_is_zero():
    rows = np.asarray([[1, 2, 4, 8], [3, 3, 3, 9], [5, 5, 1, 1], [0, 0, 0, 0]], np.float32)
    np.testing.assert_array_equal(boxes.area(rows), [18, 0, 0, 0])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), whole=st.booleans())
def test_pairwise_iou_equals_the_definition(seed, whole):
    rng = np.random.default_rng(seed)
    a = oracles.random_boxes(rng, 6, whole=whole)
    b = np.concatenate([a[:3], oracles.random_boxes(rng, 4, whole=whole)])
    expected = oracles.pairwise_iou(a, b)
    np.testing.assert_allclose(iou(a, b), expected, atol=1e-6)  # measured: 1e-7
    if whole:  # whole corners: products and sums are exact, one division rounds
        np.testing.assert_array_equal(iou(a, b), expected.astype(np.float32))


def test_pairwise_iou_of_padding_is_zero_and_has_a_finite_gradient():
    rows = np.zeros((3, 4), np.float32)
    np.testing.assert_array_equal(boxes.pairwise_iou(rows, rows), np.zeros((3, 3)))
    slope = jax.grad(lambda b: boxes.pairwise_iou(b, b).sum())(jnp.asarray(rows))
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("number", [1, 7])
@pytest.mark.parametrize("constant", [False, True])
def test_steady_overlaps_are_rounded_as_written_whatever_they_are_compiled_into(number, constant):
    rng = np.random.default_rng(number)
    many = oracles.random_boxes(rng, 3000, side=250, smallest=4).astype(np.float32)
    few = oracles.random_boxes(rng, number, side=250, smallest=4).astype(np.float32)

    def together(many, few):
        return boxes.steady_overlap(
            boxes.sides(many),
            boxes.sides(few[:, None]),
            boxes.steady_area(many),
            boxes.steady_area(few)[:, None],
        )

    def in_turn(many, few):
        return jax.lax.map(lambda one: together(many, one[None])[0], few)

    wanted = oracles.overlaps_as_written(few, many)
    for form in (together, in_turn):
        if constant:
            got = jax.jit(lambda few, form=form: form(many, few))(few)
        else:
            got = jax.jit(form)(many, few)
        np.testing.assert_array_equal(got, wanted)


def test_steady_overlaps_of_degenerate_boxes_are_zero():
    rows = np.asarray([[0, 0, 0, 0], [5, 5, 3, 9], [3, 3, 3, 9], [2, 2, 8, 8]], np.float32)
    got = boxes.steady_overlap(
        boxes.sides(rows),
        boxes.sides(rows[:, None]),
        boxes.steady_area(rows),
        boxes.steady_area(rows)[:, None],
    )
    np.testing.assert_array_equal(got, boxes.pairwise_iou(rows, rows))


def test_generalized_iou_of_known_boxes():
    a = np.asarray([[0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 1, 1], [0, 0, 4, 4]], np.float32)
    b = np.asarray([[0, 0, 2, 2], [1, 0, 3, 2], [3, 0, 4, 1], [1, 1, 3, 3]], np.float32)
    np.testing.assert_allclose(boxes.generalized_iou(a, b), [1, 1 / 3, -0.5, 0.25], rtol=1e-7)
    stretched = [side * (16, 0.5, 16, 0.5) + (32, -8, 32, -8) for side in (a, b)]
    stretched = [side.astype(np.float32) for side in stretched]
    np.testing.assert_array_equal(boxes.generalized_iou(*stretched), boxes.generalized_iou(a, b))


def test_pairwise_iou_takes_a_batch():
    rng = np.random.default_rng(0)
    a, b = oracles.random_boxes(rng, (2, 3)), oracles.random_boxes(rng, (2, 5))
    one_by_one = np.stack([boxes.pairwise_iou(p, q) for p, q in zip(a, b, strict=True)])
    np.testing.assert_array_equal(boxes.pairwise_iou(a, b), one_by_one)


@pytest.mark.parametrize("stds", [(1.0, 1.0, 1.0, 1.0), STDS])
def test_encode_equals_the_definition_and_decode_undoes_it(stds):
    rng = np.random.default_rng(1)
    a, b = oracles.random_boxes(rng, 20), oracles.random_boxes(rng, 20)
    expected = [oracles.encode(p, q, stds) for p, q in zip(a, b, strict=True)]
    deltas = boxes.encode(a, b, stds)
    np.testing.assert_allclose(deltas, expected, rtol=3e-5, atol=3e-5)  # measured: 5e-6
    np.testing.assert_allclose(boxes.decode(a, deltas, stds), b, atol=1e-4)  # measured: 1e-5


@pytest.mark.parametrize("side", [0, 1])
def test_encode_of_unsound_rows_is_zero_without_gradient(side):
    sound = np.tile(np.asarray([0, 0, 8, 8], np.float32), (len(UNSOUND), 1))
    pair = [sound, sound]
    pair[side] = UNSOUND
    np.testing.assert_array_equal(boxes.encode(*pair), np.zeros_like(UNSOUND))
    slopes = jax.grad(lambda a, b: boxes.encode(a, b).sum(), argnums=(0, 1))(*pair)
    np.testing.assert_array_equal(np.stack(slopes), 0.0)


def test_decode_limits_the_growth():
    anchor = np.asarray([[0, 0, 16, 16]], np.float32)
    deltas = np.asarray([[0, 0, 100.0, -100.0]], np.float32)

    def sides(**options):
        out = np.asarray(boxes.decode(anchor, deltas, **options))[0]
        return out[2:] - out[:2]

    np.testing.assert_allclose(sides(), [1000.0, 16 * 16 / 1000], rtol=1e-5)
    np.testing.assert_allclose(sides(clamp_below=False), [1000.0, 0.0], rtol=1e-5)


def test_decode_of_huge_deltas_is_finite_with_finite_gradients():
    anchors = np.asarray([[0, 0, 16, 16], [0, 0, 0, 0]], np.float32)
    deltas = jnp.full((2, 4), 1e4)
    for below in (True, False):
        value, slope = jax.value_and_grad(
            lambda d, below=below: boxes.decode(anchors, d, clamp_below=below).sum()
        )(deltas)
        assert np.isfinite(value)
        assert np.isfinite(slope).all()


def test_clip_cuts_at_the_image_not_at_the_canvas():
    rows = np.asarray([[[-5, -6, 70, 80], [1, 2, 3, 4]]] * 2, np.float32)
    sizes = np.asarray([[40, 50], [0, 0]], np.int32)
    expected = [[[0, 0, 50, 40], [1, 2, 3, 4]], np.zeros((2, 4))]
    np.testing.assert_array_equal(boxes.clip(rows, sizes), expected)


def test_flip_mirrors_and_is_its_own_inverse():
    rows = np.asarray([[1, 2, 4, 8]], np.float32)
    np.testing.assert_array_equal(boxes.flip(rows, 10), [[6, 2, 9, 8]])
    np.testing.assert_array_equal(boxes.flip(boxes.flip(rows, 10), 10), rows)
    widths = np.asarray([[10], [20]], np.int32)
    np.testing.assert_array_equal(boxes.flip(np.stack([rows, rows]), widths)[1], [[16, 2, 19, 8]])
