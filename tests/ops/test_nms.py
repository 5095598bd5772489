import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drkd_jax.ops import nms as ops
from tests import oracles

N = 24
run = jax.jit(ops.nms)
THRESHOLDS = [0.0, 0.05, 0.3, 0.5, 0.7, 0.95, 1.0]


def scene(seed, levels=5):
    """Crowded boxes on whole pixels with few different scores: exact overlaps, many ties."""
    rng = np.random.default_rng(seed)
    boxes = oracles.random_boxes(rng, N, side=24, whole=True)
    boxes[rng.integers(N, size=4)] = boxes[rng.integers(N, size=4)]
    scores = (rng.integers(0, levels, N) / levels).astype(np.float32)
    valid = rng.uniform(size=N) < 0.8
    groups = rng.integers(0, 3, N).astype(np.int32)
    return boxes, scores, valid, groups


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    threshold=st.sampled_from(THRESHOLDS),
    grouped=st.booleans(),
    levels=st.sampled_from([1, 5, 1000]),
)
def test_equals_the_greedy_loop(seed, threshold, grouped, levels):
    boxes, scores, valid, groups = scene(seed, levels)
    groups = groups if grouped else None
    keep = run(boxes, scores, valid, groups, jnp.float32(threshold))
    expected = oracles.nms(boxes, scores, valid, groups, threshold)
    np.testing.assert_array_equal(keep, expected)


def test_a_chain_as_long_as_the_input_settles():
    # Each box suppresses only its neighbour: the greedy answer alternates, one round a link.
    left = np.arange(N, dtype=np.float32) * 4
    boxes = np.stack([left, np.zeros(N), left + 10, np.full(N, 10)], 1).astype(np.float32)
    scores = np.linspace(1, 0.1, N, dtype=np.float32)
    keep = run(boxes, scores, np.ones(N, bool), None, jnp.float32(0.4))
    np.testing.assert_array_equal(keep, np.arange(N) % 2 == 0)


def test_an_overlap_equal_to_the_threshold_stays():
    boxes = np.asarray([[0, 0, 4, 4], [0, 0, 4, 2]], np.float32)
    scores, valid = np.asarray([0.9, 0.8], np.float32), np.ones(2, bool)
    assert ops.nms(boxes, scores, valid, None, 0.5).tolist() == [True, True]
    assert ops.nms(boxes, scores, valid, None, 0.4999).tolist() == [True, False]


def test_equal_boxes_with_equal_scores_keep_the_first_row():
    boxes = np.tile(np.asarray([[0, 0, 4, 4]], np.float32), (3, 1))
    keep = ops.nms(boxes, np.full(3, 0.5, np.float32), np.ones(3, bool), None, 0.5)
    assert keep.tolist() == [True, False, False]


def test_groups_far_from_the_origin_do_not_touch():
    # Shifting groups apart by coordinates would lose these boxes' digits.
    boxes = np.tile(np.asarray([[4096, 4096, 4097, 4097]], np.float32), (4, 1))
    scores, groups = np.asarray([4, 3, 2, 1], np.float32), np.asarray([0, 90000, 0, -3], np.int32)
    keep = ops.nms(boxes, scores, np.ones(4, bool), groups, 0.5)
    assert keep.tolist() == [True, True, False, True]


def test_vmap_equals_one_by_one_and_jit_equals_eager():
    scenes = [scene(seed) for seed in range(3)]
    stacked = [np.stack(x) for x in zip(*scenes, strict=True)]
    batched = jax.jit(jax.vmap(lambda *a: ops.nms(*a, 0.5)))(*stacked)
    one_by_one = [ops.nms(*s, 0.5) for s in scenes]
    np.testing.assert_array_equal(batched, np.stack(one_by_one))


@pytest.mark.parametrize("fill", [0.0, np.nan, np.inf])
def test_padding_rows_change_nothing(fill):
    boxes, scores, valid, groups = scene(3)
    keep = ops.nms(boxes, scores, valid, groups, 0.5)
    longer = ops.nms(
        np.concatenate([boxes, np.full((5, 4), fill, np.float32)]),
        np.concatenate([scores, np.full(5, fill, np.float32)]),
        np.concatenate([valid, np.zeros(5, bool)]),
        np.concatenate([groups, np.zeros(5, np.int32)]),
        0.5,
    )
    np.testing.assert_array_equal(longer[:N], keep)
    assert not longer[N:].any()


def test_no_valid_rows_and_no_rows():
    boxes, scores, _, _ = scene(0)
    assert not ops.nms(boxes, scores, np.zeros(N, bool), None, 0.5).any()
    empty = ops.select(boxes[:0], scores[:0], np.zeros(0, bool), None, 0.5, 3)
    assert empty.valid.tolist() == [False] * 3


def test_a_gradient_passes_by():
    boxes, scores, valid, _ = map(jnp.asarray, scene(1))

    def loss(boxes, scores):
        return jnp.sum(boxes.sum(1) * scores * ops.nms(boxes, scores, valid, None, 0.5))

    for slope in jax.jit(jax.grad(loss, argnums=(0, 1)))(boxes, scores):
        assert np.isfinite(slope).all()


@pytest.mark.parametrize("max_out", [5, N, N + 7])
@pytest.mark.parametrize("grouped", [False, True])
def test_select_gives_the_best_kept_rows_in_order(max_out, grouped):
    boxes, scores, valid, labels = scene(7)
    groups = labels if grouped else None
    got = ops.select(boxes, scores, valid, groups, 0.3, max_out)
    kept = np.flatnonzero(oracles.nms(boxes, scores, valid, groups, float(np.float32(0.3))))
    expected = sorted(kept, key=lambda i: (-scores[i], i))[:max_out]
    assert got.indices.shape == got.valid.shape == (max_out,)
    assert got.indices[got.valid].tolist() == expected
    assert got.valid[: len(expected)].all()
    assert not got.indices[len(expected) :].any()


def test_a_threshold_is_compared_as_it_is_written():
    # 3 / 10 as float32 is more than 0.3, so that it suppresses; as a float32 it would not.
    boxes = np.asarray([[0, 0, 10, 1], [0, 0, 3, 1]], np.float32)
    scores, valid = np.asarray([0.9, 0.8], np.float32), np.ones(2, bool)
    assert ops.nms(boxes, scores, valid, None, 0.3).tolist() == [True, False]
    assert ops.nms(boxes, scores, valid, None, jnp.float32(0.3)).tolist() == [True, True]
    # 7 / 10 as float32 is less than 0.7.
    boxes[1, 2] = 7
    assert ops.nms(boxes, scores, valid, None, 0.7).tolist() == [True, True]


def test_bfloat16_boxes_and_scores_are_those_numbers_exactly():
    boxes, scores, valid, groups = scene(11, levels=1000)
    half = jnp.asarray(boxes * 1.37, jnp.bfloat16), jnp.asarray(scores, jnp.bfloat16)
    wide = [np.asarray(x, np.float32) for x in half]
    overlaps = oracles.pairwise_iou(wide[0], wide[0])
    assert np.abs(overlaps - 0.4).min() > 1e-5  # these are no whole pixels: rounding stays clear
    expected = oracles.nms(*wide, valid, groups, 0.4)
    np.testing.assert_array_equal(run(*half, valid, groups, jnp.float32(0.4)), expected)


def test_a_threshold_is_not_rounded_to_narrow_boxes():
    """0.4 would be 0.398 in the boxes' bfloat16; whole pixels up to 256 are exact in it."""
    boxes = jnp.asarray([[0, 0, 101, 104], [0, 0, 100, 42]], jnp.bfloat16)  # an overlap of 0.39985
    scores, valid = np.asarray([0.9, 0.8], np.float32), np.ones(2, bool)
    assert ops.nms(boxes, scores, valid, None, 0.4).tolist() == [True, True]
