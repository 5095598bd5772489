"""NonMaxSuppression and RoiAlign of onnxruntime against ours, on the same boxes."""

from functools import partial

import jax
import numpy as np
import pytest

from drkd_jax.export.onnx_graph import Graph
from drkd_jax.export.onnx_operators import add_regions, add_suppression
from drkd_jax.ops.nms import nms
from drkd_jax.ops.platform import tracing_for
from drkd_jax.ops.roi_align import roi_align

pytest.importorskip("onnx", reason="needs the extra onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")

STRIDES = (8, 16)
# At, across and outside of the edges of 96x160 pixels; without a side; bins of whole cells.
EDGES = (
    *[(0, 0, 160, 96), (-12, -12, 20, 20), (140, 80, 176, 108), (-40, -40, -8, -8)],
    *[(-8, 0, 40, 96), (168, 104, 200, 140), (0, 0, 0, 0), (10, 10, 10, 30), (160, 96, 160, 96)],
    *[(0, 0, 56, 56), (8, 8, 120, 64), (0, 0, 112, 112), (3, 5, 4, 6)],
)


def run(graph, feeds, output, like):
    model = graph.model(feeds, {"found": (output, like)}).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("samples", [0, 2])
def test_regions_are_read_alike(aligned, samples):
    rng = np.random.default_rng(0)
    first = rng.uniform(-30, 150, (2, 24, 2))
    boxes = np.concatenate([first, first + rng.uniform(0, 150, first.shape)], 2)
    boxes[:, : len(EDGES)] = EDGES
    maps = [rng.normal(size=(2, 96 // s, 160 // s, 3)).astype(np.float32) for s in STRIDES]
    feeds = {
        "boxes": boxes.astype(np.float32),
        "levels": rng.integers(0, 2, boxes.shape[:2]).astype(np.int32),
        **{f"map{i}": m for i, m in enumerate(maps)},
    }
    how = {"strides": STRIDES, "aligned": aligned}
    ours = jax.jit(partial(roi_align, sampling_ratio=samples, **how))
    for levels in (feeds["levels"], np.ones_like(feeds["levels"])):  # then none on the finest
        feeds["levels"] = levels
        wanted = np.asarray(ours(tuple(maps), feeds["boxes"], levels))
        graph = Graph()
        result = add_regions(
            graph, wanted.shape, "boxes", "levels", ["map0", "map1"], bins=7, samples=samples, **how
        )
        found = run(graph, feeds, result, wanted)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5)


@pytest.mark.parametrize("grouped", [False, True])
def test_suppression_keeps_the_same_boxes(grouped):
    # Whole pixels and tenths: overlaps and scores that are equal are equal everywhere.
    rng = np.random.default_rng(1)
    first = rng.integers(0, 12, (2, 3, 40, 2))
    boxes = np.concatenate([first, first + rng.integers(0, 9, first.shape)], 3).astype(np.float32)
    feeds = {
        "boxes": boxes,
        "scores": (rng.integers(0, 10, boxes.shape[:3]) / 10).astype(np.float32),
        "valid": rng.random(boxes.shape[:3]) < 0.8,
    }
    boxes[0, 0] = 20 * np.arange(40)[:, None] + np.array([0, 0, 9, 9])  # all of them are kept
    feeds["valid"][0, 0] = True
    if grouped:
        feeds["groups"] = rng.integers(0, 3, boxes.shape[:3]).astype(np.int32)
        feeds["groups"][0, 0] = 1
    one = jax.vmap(jax.vmap(lambda b, s, v, *g: nms(b, s, v, g[0] if g else None, 0.5)))
    wanted = np.asarray(jax.jit(one)(*feeds.values()))
    graph = Graph()
    result = add_suppression(graph, wanted.shape, 3, 0.5, *feeds)
    np.testing.assert_array_equal(run(graph, feeds, result, wanted), wanted)
    assert 0 < wanted.sum() < feeds["valid"].sum()
    assert wanted[0, 0].all()


def test_what_images_share_is_given_to_each():
    one = jax.vmap(lambda b, v: nms(b, np.ones(5, np.float32), v, None, 0.5), in_axes=(2, 0))
    with tracing_for("onnx"):
        traced = jax.make_jaxpr(one)(np.zeros((5, 4, 3), np.float32), np.ones((3, 5), bool))
    (call,) = (e for e in traced.jaxpr.eqns if e.primitive.name == "suppress")
    assert [v.aval.shape for v in call.invars] == [(3, 5, 4), (3, 5), (3, 5)]
    assert call.outvars[0].aval.shape == (3, 5)
