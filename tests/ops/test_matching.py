import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drkd_jax import anchors as anchor_ops
from drkd_jax.ops import matching
from drkd_jax.ops.platform import tracing_for
from tests import oracles

A, G = 40, 5
SETTINGS = {"rpn": (0.7, 0.3, 0.3), "roi": (0.5, 0.5, None), "retina": (0.5, 0.4, 0.0)}


def match(iou, valid, positive, negative, low_quality=None, eligible=None, overwrite=True):
    """The matches of one image's anchors, from a whole matrix of overlaps ``[A, G]``."""
    eligible = jnp.asarray(np.ones(len(iou), bool) if eligible is None else eligible)
    iou = jnp.where(jnp.asarray(valid)[:, None] & eligible, jnp.asarray(iou).T, -1.0)
    found = matching._nothing((1, len(eligible)), iou.dtype)
    if len(iou):
        found = matching._take_in(found, iou[None], 0, low_quality)
    image = matching._decide(found, eligible[None], positive, negative, overwrite)
    return jax.tree.map(lambda rows: rows[0], image)


run = jax.jit(match, static_argnames=("positive", "negative", "low_quality", "overwrite"))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    kind=st.sampled_from(sorted(SETTINGS)),
    overwrite=st.booleans(),
    share=st.sampled_from([0.0, 0.6, 1.0]),
)
def test_equals_the_loop(seed, kind, overwrite, share):
    rng = np.random.default_rng(seed)
    # Tenths: ties between anchors, between ground truths and with the thresholds are common.
    iou = (rng.integers(0, 10, (A, G)) / 10).astype(np.float32)
    iou *= rng.uniform(size=(A, G)) < 0.3
    valid, eligible = rng.uniform(size=G) < share, rng.uniform(size=A) < 0.8
    positive, negative, low = SETTINGS[kind]
    # The program compares with float32 thresholds.
    thresholds = [None if t is None else float(np.float32(t)) for t in (positive, negative, low)]
    index, is_positive, is_negative = oracles.match(iou, valid, *thresholds, eligible, overwrite)
    got = run(iou, valid, positive, negative, low, eligible, overwrite)
    np.testing.assert_array_equal(got.positive, is_positive)
    np.testing.assert_array_equal(got.negative, is_negative)
    np.testing.assert_array_equal(got.index[is_positive], index[is_positive])


def test_later_ground_truths_overwrite_an_even_better_match():
    iou = np.asarray([[0.9, 0.8], [0.1, 0.0]], np.float32)
    both = np.ones(2, bool)
    assert match(iou, both, 0.7, 0.3, 0.3).index[0] == 1
    assert match(iou, both, 0.7, 0.3, 0.3, overwrite=False).index[0] == 0


def test_a_box_that_touches_no_anchor_claims_none():
    iou = np.asarray([[0.9, 0.0], [0.0, 0.0]], np.float32)
    got = match(iou, np.ones(2, bool), 0.5, 0.4, 0.0)
    assert got.positive.tolist() == [True, False]
    assert got.negative.tolist() == [False, True]


@pytest.mark.parametrize("kind", sorted(SETTINGS))
@pytest.mark.parametrize("columns", [0, 3])
def test_without_ground_truths_every_eligible_anchor_is_negative(kind, columns):
    eligible = np.arange(A) < 30
    got = match(
        np.full((A, columns), 0.9, np.float32), np.zeros(columns, bool), *SETTINGS[kind], eligible
    )
    assert not got.positive.any()
    np.testing.assert_array_equal(got.negative, eligible)


@pytest.mark.parametrize("kind", sorted(SETTINGS))
def test_padding_rows_and_columns_change_nothing(kind):
    rng = np.random.default_rng(2)
    iou = rng.uniform(0, 1, (A, G)).astype(np.float32)
    short = match(iou, np.ones(G, bool), *SETTINGS[kind])
    wide = np.pad(iou, ((0, 7), (0, 3)), constant_values=1.0)
    long = match(wide, np.arange(G + 3) < G, *SETTINGS[kind], np.arange(A + 7) < A)
    for a, b in zip(short, long, strict=True):
        np.testing.assert_array_equal(a, b[:A])
    assert not (long.positive | long.negative)[A:].any()


def test_compiled_together_with_the_overlaps_every_truth_has_all_its_tied_anchors():
    # Overlaps on whole pixels are exact, so the oracle can name every tie.
    grid = anchor_ops.grid(anchor_ops.base_anchors(8, (1.0,), (2,)), (12, 12), 4)
    rng = np.random.default_rng(5)
    truths = oracles.random_boxes(rng, (8, G), side=48, smallest=4, whole=True)
    valid = np.ones(G, bool)

    every = np.ones((8, G), bool), 0.5, 0.4, 0.0, np.ones((8, len(grid)), bool)
    got = jax.jit(lambda truths: matching.match_boxes(grid, truths, *every))(truths)
    for image in range(8):
        iou = oracles.pairwise_iou(grid, truths[image]).astype(np.float32)
        everything = np.ones(len(grid), bool)
        index, positive, negative = oracles.match(iou, valid, 0.5, 0.4, 0.0, everything, True)
        np.testing.assert_array_equal(got.positive[image], positive)
        np.testing.assert_array_equal(got.negative[image], negative)
        np.testing.assert_array_equal(got.index[image][positive], index[positive])


def test_compiled_together_no_truth_is_lost_to_rounding():
    grid = anchor_ops.grid(anchor_ops.base_anchors(4, (0.5, 1.0, 2.0), (3.3,)), (16, 16), 4)
    truths = oracles.random_boxes(np.random.default_rng(6), (16, G), smallest=3)

    every = np.ones((16, G), bool), 2.0, 0.0, 0.0, np.ones((16, len(grid)), bool)
    got = jax.jit(lambda truths: matching.match_boxes(grid, truths, *every))(truths)
    for image in range(16):
        overlaps = oracles.pairwise_iou(grid, truths[image])
        # Rounding decides which of several anchors around a small box is the best; a later truth
        # may have claimed the anchor, but it is positive.
        best = overlaps >= overlaps.max(axis=0) - 1e-6
        assert (got.positive[image][:, None] & best).any(axis=0).all()


@pytest.mark.parametrize(
    ("kind", "overwrite", "shared"),
    [("rpn", True, True), ("retina", False, True), ("retina", True, False), ("roi", True, False)],
)
@pytest.mark.parametrize("form", ["cpu", "gpu", "gpu, few pairs"])
def test_boxes_in_blocks_are_matched_as_the_matrix_to_the_bit(
    monkeypatch, kind, overwrite, shared, form
):
    monkeypatch.setattr(matching, "_BLOCK", 3)  # of 7: the last block overlaps the one before
    monkeypatch.setattr(matching, "_SMALL", 2**20 if "few" in form else 0)
    rng = np.random.default_rng(7)
    base = anchor_ops.base_anchors(8, (0.5, 1.0, 2.0), (2.1, 3.3))
    grid = anchor_ops.grid(base, (10, 11), 8).astype(np.float32)
    anchors = grid if shared else np.stack([grid + np.float32(i / 3) for i in range(5)])
    truths = oracles.random_boxes(rng, (5, 7), side=88, smallest=4).astype(np.float32)
    truths[:, 4:6] = truths[:, 1:3]  # overlaps that are equal
    valid = np.arange(7) < np.asarray([[7], [0], [6], [5], [3]])
    valid[2, 2] = False
    eligible = rng.uniform(size=(5, len(grid))) < 0.8

    def traced(*rows):
        with tracing_for(form[:3]):
            return matching.match_boxes(
                rows[0], rows[1], rows[2], *SETTINGS[kind], rows[3], overwrite
            )

    got = jax.jit(traced)(anchors, truths, valid, eligible)
    assert np.asarray(got.positive).any()
    for image in range(5):
        iou = oracles.overlaps_as_written(anchors if shared else anchors[image], truths[image])
        one = valid[image], *SETTINGS[kind], eligible[image], overwrite
        wanted = match(iou, *one)
        for field, answer in zip(got, wanted, strict=True):
            np.testing.assert_array_equal(field[image], answer)
        limits = [None if t is None else float(np.float32(t)) for t in SETTINGS[kind]]
        index, positive, negative = oracles.match(iou, one[0], *limits, *one[4:])
        np.testing.assert_array_equal(wanted.positive, positive)
        np.testing.assert_array_equal(wanted.negative, negative)
        np.testing.assert_array_equal(wanted.index[positive], index[positive])


@pytest.mark.parametrize("form", ["cpu", "gpu"])
def test_the_matrix_of_all_overlaps_is_never_whole(form):
    def traced(anchors, truths, valid, eligible):
        with tracing_for(form):
            return matching.match_boxes(anchors, truths, valid, 0.5, 0.4, 0.0, eligible)

    A, G, S = 40_000, 100, jax.ShapeDtypeStruct
    rows = S((2, G, 4), np.float32), S((2, G), np.bool_), S((2, A), np.bool_)
    program = jax.jit(traced).lower(S((A, 4), np.float32), *rows).compile()
    planned = program.memory_analysis().temp_size_in_bytes
    assert planned < 2 * A * G * 4 / 2


def test_no_gradient_flows_and_none_is_needed():
    rng = np.random.default_rng(0)
    truths = oracles.random_boxes(rng, (2, G), smallest=3).astype(np.float32)
    anchors = oracles.random_boxes(rng, (2, A), smallest=3).astype(np.float32)
    every = np.ones((2, G), bool), 0.5, 0.4, 0.0, np.ones((2, A), bool)

    def total(anchors, truths):
        return (anchors[..., 0] * matching.match_boxes(anchors, truths, *every).positive).sum()

    positive = matching.match_boxes(anchors, truths, *every).positive
    of_anchors, of_truths = jax.grad(total, (0, 1))(jnp.asarray(anchors), jnp.asarray(truths))
    np.testing.assert_array_equal(of_anchors[..., 0], positive)
    np.testing.assert_array_equal(of_truths, 0)
