import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drkd_jax.ops import sampling

A = 30
run = jax.jit(sampling.sample, static_argnames=("num", "max_positive"))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    shape=st.sampled_from([(8, 4), (8, 0), (8, 8), (8, 20), (A, 10), (A + 9, 5), (0, 0)]),
    shares=st.sampled_from(
        [(0.1, 0.8), (0.6, 0.1), (0.6, 0.8), (0.0, 0.0), (0.0, 1.0), (1.0, 0.0)]
    ),
)
def test_counts_and_classes(seed, shape, shares):
    num, max_positive = shape
    rng = np.random.default_rng(seed)
    lot = rng.uniform(size=A)
    positive, negative = lot < shares[0], lot >= 1 - shares[1]
    indices, is_positive, valid = map(
        np.asarray, run(jax.random.key(seed), positive, negative, num, max_positive)
    )
    assert indices.shape == is_positive.shape == valid.shape == (num,)
    num_positive = min(positive.sum(), max_positive, num)
    num_negative = min((negative & ~positive).sum(), num - num_positive)
    assert is_positive.sum() == num_positive
    assert valid.sum() == num_positive + num_negative
    assert valid[: valid.sum()].all()  # the valid rows come first
    assert is_positive[:num_positive].all()  # and among them the positives
    assert positive[indices[is_positive]].all()
    assert (negative & ~positive)[indices[valid & ~is_positive]].all()
    assert len(set(indices[valid])) == valid.sum()
    assert not indices[~valid].any()


@pytest.mark.parametrize("extra", [1, 98, 4096])
def test_rows_of_no_class_at_the_end_change_nothing(extra):
    positive, negative = np.arange(A) % 3 == 0, np.arange(A) % 3 == 1
    for seed in range(5):
        short = sampling.sample(jax.random.key(seed), positive, negative, 12, 5)
        padded = np.pad(positive, (0, extra)), np.pad(negative, (0, extra))
        long = sampling.sample(jax.random.key(seed), *padded, 12, 5)
        for a, b in zip(short, long, strict=True):
            np.testing.assert_array_equal(a, b)


def test_every_candidate_is_drawn_equally_often():
    positive, negative = np.arange(A) < 10, np.arange(A) >= 10
    keys = jax.random.split(jax.random.key(0), 4000)
    got = jax.jit(jax.vmap(lambda k: sampling.sample(k, positive, negative, 8, 3)))(keys)
    counts = np.bincount(np.asarray(got.indices).ravel(), minlength=A) / len(keys)
    # Three of ten, five of twenty; five standard deviations of a binomial share.
    for rows, share in ((slice(0, 10), 3 / 10), (slice(10, A), 5 / 20)):
        room = 5 * np.sqrt(share * (1 - share) / len(keys))
        np.testing.assert_allclose(counts[rows], share, atol=room)


def test_the_key_decides_and_nothing_else():
    positive, negative = np.arange(A) < 10, np.arange(A) >= 10
    keys = jax.random.split(jax.random.key(1), 3)
    batched = jax.vmap(lambda k: run(k, positive, negative, 8, 4))(keys)
    for i, key in enumerate(keys):
        alone = sampling.sample(key, positive, negative, 8, 4)  # eager, one image
        np.testing.assert_array_equal(batched.indices[i], alone.indices)
    assert len({tuple(row) for row in np.asarray(batched.indices).tolist()}) == 3


def test_no_rows_at_all():
    nothing = np.zeros(0, bool)
    got = sampling.sample(jax.random.key(0), nothing, nothing, 4, 2)
    assert got.valid.tolist() == [False] * 4
