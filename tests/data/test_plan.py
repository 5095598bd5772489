from __future__ import annotations

import numpy as np
import pytest

from drkd_jax.data.plan import BatchPlan

INDICES = np.arange(100, 123)
CANVAS_OF = np.arange(23) % 3 % 2  # 0 1 0 | 0 1 0 ...: 15 or 16 of canvas 0


def _plan(**changes) -> BatchPlan:
    settings = {"batch_size": 4, "seed": 3, "flip": 0.5} | changes
    return BatchPlan(INDICES, CANVAS_OF, **settings)


def test_every_picture_once_an_epoch_and_one_canvas_a_batch():
    plan = _plan()
    counts = np.bincount(CANVAS_OF)
    assert plan.steps_per_epoch == sum(-(-counts // 4))
    for epoch in range(3):
        seen = []
        for step in range(plan.steps_per_epoch):
            batch = plan.batch(epoch * plan.steps_per_epoch + step)
            real = batch.indices[batch.indices >= 0]
            assert len(batch.indices) == 4
            assert set(CANVAS_OF[real - 100]) == {batch.canvas}
            assert not batch.flip[batch.indices < 0].any()
            seen += real.tolist()
        assert sorted(seen) == INDICES.tolist()


def test_random_access_equals_walking():
    plan = _plan()
    numbers = [40, 0, 13, 2, 40, 7]
    walked = [_plan().batch(i) for i in range(41)]
    for number in numbers:
        batch = plan.batch(number)
        np.testing.assert_array_equal(batch.indices, walked[number].indices)
        np.testing.assert_array_equal(batch.flip, walked[number].flip)
        assert batch.canvas == walked[number].canvas


def _epoch(plan: BatchPlan, epoch: int) -> np.ndarray:
    n = plan.steps_per_epoch
    return np.concatenate([plan.batch(epoch * n + i).indices for i in range(n)])


def test_epochs_and_seeds_differ():
    assert not np.array_equal(_epoch(_plan(), 0), _epoch(_plan(), 1))
    assert not np.array_equal(_epoch(_plan(), 0), _epoch(_plan(seed=4), 0))


def test_batches_of_canvases_are_mixed():
    plan = BatchPlan(np.arange(64), np.arange(64) // 32, 4, seed=0)
    order = [plan.batch(i).canvas for i in range(16)]
    assert order != sorted(order)
    assert order != sorted(order, reverse=True)


def _flips(plan: BatchPlan) -> dict[int, bool]:
    batches = [plan.batch(i) for i in range(plan.steps_per_epoch)]
    return {
        int(i): bool(f) for b in batches for i, f in zip(b.indices, b.flip, strict=True) if i >= 0
    }


def test_flips_belong_to_pictures_not_to_batches():
    assert _flips(_plan()) == _flips(_plan(batch_size=7))
    assert set(_flips(_plan()).values()) == {True, False}
    assert set(_flips(_plan(flip=0.0)).values()) == {False}
    assert set(_flips(_plan(flip=1.0)).values()) == {True}


@pytest.mark.parametrize("batch_size", [1, 5, 30])
def test_unshuffled_keeps_order_within_canvases(batch_size):
    plan = BatchPlan(INDICES, CANVAS_OF, batch_size, shuffle=False)
    seen = _epoch(plan, 0)
    seen = seen[seen >= 0]
    expected = np.concatenate([INDICES[CANVAS_OF == 0], INDICES[CANVAS_OF == 1]])
    np.testing.assert_array_equal(seen, expected)
