"""Operations with a form of their own for CPUs give what their other form gives."""

import jax
import numpy as np
import pytest

from drkd_jax.ops.matching import match_boxes
from drkd_jax.ops.nms import nms
from drkd_jax.ops.platform import platform, tracing_for
from tests import oracles


def both(function, *arguments):
    """What a function gives when traced for a CPU and for a GPU."""
    results = []
    for name in ("cpu", "gpu"):

        def traced(*arguments, name=name):
            with tracing_for(name):
                return function(*arguments)

        results.append(jax.jit(traced)(*arguments))
    return results


def whole_boxes(rng, *shape):
    """Boxes of whole pixels: many equal overlaps."""
    corner = rng.integers(0, 24, (*shape, 2))
    return np.concatenate([corner, corner + rng.integers(1, 12, (*shape, 2))], -1).astype(
        np.float32
    )


def test_the_choice_ends_with_its_block():
    before = platform()
    with tracing_for("tpu"):
        assert platform() == "tpu"
    assert platform() == before


@pytest.mark.parametrize("grouped", [False, True])
def test_nms_box_by_box_equals_the_fixed_point(grouped):
    rng = np.random.default_rng(3)
    boxes, valid = whole_boxes(rng, 6, 70), rng.uniform(size=(6, 70)) < 0.9
    scores = (rng.integers(0, 20, (6, 70)) / 20).astype(np.float32)  # ties
    groups = rng.integers(0, 3, (6, 70)) if grouped else np.zeros((6, 70), np.int32)
    valid[5] = False
    cpu, gpu = both(
        lambda *rows: jax.vmap(lambda b, s, v, g: nms(b, s, v, g, 0.3))(*rows),
        *(boxes, scores, valid, groups),
    )
    np.testing.assert_array_equal(cpu, gpu)
    for i in range(2):
        np.testing.assert_array_equal(
            gpu[i], oracles.nms(boxes[i], scores[i], valid[i], groups[i], 0.3)
        )


@pytest.mark.parametrize(
    "kind", [(0.7, 0.3, 0.3, True), (0.5, 0.4, 0.0, False), (0.5, 0.5, None, True)]
)
@pytest.mark.parametrize("shared", [True, False])
def test_matching_truth_by_truth_equals_the_matrix(kind, shared):
    rng = np.random.default_rng(4)
    *thresholds, overwrite = kind
    anchors = whole_boxes(rng, 90) if shared else whole_boxes(rng, 4, 90)
    boxes = whole_boxes(rng, 4, 7)
    # The last real row is not the same in all pictures; one has none, one has a gap.
    valid = np.arange(7) < np.asarray([[3], [0], [6], [5]])
    valid[3, 2] = False
    eligible = rng.uniform(size=(4, 90)) < 0.8
    cpu, gpu = both(
        lambda *rows: match_boxes(anchors, *rows[:2], *thresholds, rows[2], overwrite),
        *(boxes, valid, eligible),
    )
    assert np.asarray(gpu.positive).any()
    jax.tree.map(np.testing.assert_array_equal, cpu, gpu)
