"""Operations with a special form for CPUs give the same as their other form."""

from functools import partial

import jax
import numpy as np
import pytest

from drkd_jax.ops import conv
from drkd_jax.ops.conv import convolve
from drkd_jax.ops.matching import match_boxes
from drkd_jax.ops.nms import nms
from drkd_jax.ops.platform import platform, tracing_for
from drkd_jax.ops.pool import max_pool
from tests import oracles


def both(function, *arguments):
    """Results of a function, traced for a CPU and for a GPU."""
    results = []
    for name in ("cpu", "gpu"):

        def traced(*arguments, name=name):
            with tracing_for(name):
                return function(*arguments)

        results.append(jax.jit(traced)(*arguments))
    return results


def whole_boxes(rng, *shape):
    """Boxes on whole pixels, with many equal overlaps."""
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


def test_nms_in_words_of_bits_equals_the_walk_at_any_number_of_boxes():
    def kept(scenes):
        over_levels = jax.vmap(lambda *rows: nms(*rows[:3], rows[3], 0.5))
        return {N: jax.vmap(over_levels)(*rows) for N, rows in scenes.items()}

    rng = np.random.default_rng(6)
    scenes = {}
    for N in (31, 64):
        boxes, valid = whole_boxes(rng, 2, 3, N), rng.uniform(size=(2, 3, N)) < 0.8
        scores = (rng.integers(-3, 3, (2, 3, N)) / 4).astype(np.float32)
        boxes[:, :, -1], scores[:, :, -1] = boxes[:, :, 0], scores[:, :, 0]
        valid[0, 0, [0, -1]], valid[0, 1, [0, -1]], valid[0, 2] = True, (False, True), False
        boxes[~valid & (rng.uniform(size=valid.shape) < 0.5)] = np.nan
        scores[~valid] = rng.choice([np.nan, np.inf, 0.0], size=(~valid).sum())
        scenes[N] = boxes, scores, valid, rng.integers(0, 2, valid.shape)
        scenes[N][3][:, :, -1] = scenes[N][3][:, :, 0]
    cpu, gpu = both(kept, scenes)
    jax.tree.map(np.testing.assert_array_equal, cpu, gpu)
    for N, rows in scenes.items():
        for b, level in np.ndindex(2, 3):
            expected = oracles.nms(*(x[b, level] for x in rows), 0.5)
            np.testing.assert_array_equal(gpu[N][b, level], expected, err_msg=f"{N} boxes")
        # Equal boxes with equal scores in the first row and the last; no valid row at all.
        assert not gpu[N][0, 0, -1]
        assert not gpu[N][0, 2].any()


def test_nms_in_words_of_bits_writes_out_no_pair():
    def kept(boxes, scores, valid):
        with tracing_for("gpu"):
            return nms(boxes, scores, valid, None, 0.5)

    N, S = 1024, jax.ShapeDtypeStruct
    rows = S((N, 4), np.float32), S((N,), np.float32), S((N,), np.bool_)
    planned = jax.jit(kept).lower(*rows).compile().memory_analysis().temp_size_in_bytes
    assert planned < N * N  # a byte a pair; the words take an eighth of it


@pytest.mark.parametrize(
    "kind", [(0.7, 0.3, 0.3, True), (0.5, 0.4, 0.0, False), (0.5, 0.5, None, True)]
)
@pytest.mark.parametrize("shared", [True, False])
def test_matching_truth_by_truth_equals_the_matrix(kind, shared):
    rng = np.random.default_rng(4)
    *thresholds, overwrite = kind
    anchors = whole_boxes(rng, 90) if shared else whole_boxes(rng, 4, 90)
    boxes = whole_boxes(rng, 4, 7)
    # The last real row is not the same in all images; one has none, one has a gap.
    valid = np.arange(7) < np.asarray([[3], [0], [6], [5]])
    valid[3, 2] = False
    eligible = rng.uniform(size=(4, 90)) < 0.8
    cpu, gpu = both(
        lambda *rows: match_boxes(anchors, *rows[:2], *thresholds, rows[2], overwrite),
        *(boxes, valid, eligible),
    )
    assert np.asarray(gpu.positive).any()
    jax.tree.map(np.testing.assert_array_equal, cpu, gpu)


NHWC = ("NHWC", "HWIO", "NHWC")
NONE = ((0, 0), (0, 0))
SHAPES = {  # kernel, stride, height, width, padding before and after, channels in and out, groups
    "stem": (7, 2, 12, 10, (3, 3), 3, 4, 1),
    "odd sides": (7, 2, 11, 9, (3, 3), 3, 4, 1),
    "uneven": (5, 2, 9, 8, (0, 2), 3, 4, 1),
    "narrow": (3, 1, 6, 5, (1, 1), 3, 4, 1),
    "narrow, uneven": (3, 1, 6, 5, (0, 2), 3, 4, 1),
    "point": (1, 1, 5, 4, (0, 0), 64, 64, 1),
    "strided point": (1, 2, 7, 6, (0, 0), 64, 64, 1),
    "narrowing point": (1, 1, 5, 4, (0, 0), 128, 32, 1),
    "few pixels": (3, 2, 6, 5, (0, 2), 64, 72, 1),
    "few pixels, many taps": (5, 1, 3, 2, (2, 2), 64, 64, 1),
    "wide": (3, 2, 18, 19, (0, 2), 128, 136, 1),
    "wide to narrower": (3, 1, 9, 9, (1, 1), 136, 128, 1),
    "many pixels": (3, 1, 14, 13, (1, 1), 64, 72, 1),
    "many pixels, uneven": (3, 2, 29, 27, (0, 2), 72, 64, 1),
    "groups": (3, 2, 5, 6, (1, 1), 48, 96, 6),  # 3 slices of 2 groups
    "wide groups": (3, 2, 5, 4, (0, 2), 80, 40, 2),
    "many groups": (3, 2, 6, 5, (0, 2), 40, 80, 20),  # of 2 channels
    "thin groups": (3, 1, 5, 4, (1, 1), 96, 96, 24),  # of 4
}


@pytest.fixture
def fewer_pixels_are_many(monkeypatch):
    monkeypatch.setattr(conv, "_LARGE", 200_000)


def of_shape(x, kernel, shape, **others):
    _, stride, _, _, padding, _, _, groups = shape
    others |= {"dimension_numbers": NHWC, "feature_group_count": groups}
    return convolve(x, kernel, (stride,) * 2, (padding,) * 2, **others)


def test_convolutions_and_their_gradients_are_those_of_xla(fewer_pixels_are_many):
    def value_and_gradients(x, kernel, shape, weights):
        def total(x, kernel):
            out = of_shape(x, kernel, shape)
            return (out * weights[: out.size].reshape(out.shape)).sum(), out

        gradients, out = jax.grad(total, (0, 1), has_aux=True)(x, kernel)
        return out, *gradients

    def every(arrays, weights):
        return {
            name: value_and_gradients(*arrays[name], shape, weights)
            for name, shape in SHAPES.items()
        }

    rng = np.random.default_rng(5)
    with jax.enable_x64(True):
        arrays = {
            name: (rng.normal(size=(2, h, w, C)), rng.normal(size=(k, k, C // G, D)))
            for name, (k, _, h, w, _, C, D, G) in SHAPES.items()
        }
        weights = rng.normal(size=27000)
        forms = both(every, arrays, weights)
        with tracing_for("onnx"):  # which has none of its own
            xla = jax.jit(every)(arrays, weights)
    for form in forms:
        for name in SHAPES:
            for a, b in zip(form[name], xla[name], strict=True):
                np.testing.assert_allclose(a, b, rtol=0, atol=2e-14 * np.abs(b).max(), err_msg=name)


def traced(platform, name, dtype="float32", **others):
    """The traced program of a convolution and its gradients."""
    k, _, h, w, _, C, D, G = SHAPES[name]
    shapes = [jax.ShapeDtypeStruct(n, dtype) for n in ((2, h, w, C), (k, k, C // G, D))]
    with tracing_for(platform):
        total = jax.grad(lambda x, y: of_shape(x, y, SHAPES[name], **others).sum(), (0, 1))
        return str(jax.make_jaxpr(total)(*shapes))


def test_a_kernel_of_some_channels_has_its_gradient_by_rows_on_large_maps(monkeypatch):
    assert "f32[3,192,72]" not in traced("cpu", "many pixels")  # 3 taps of 64 channels, 3 rows
    monkeypatch.setattr(conv, "_LARGE", 2 * 14 * 13 * 9 * 72)
    assert "f32[3,192,72]" in traced("cpu", "many pixels")
    monkeypatch.setattr(conv, "_LARGE", 2 * 14 * 13 * 9 * 72 + 1)
    assert "f32[3,192,72]" not in traced("cpu", "many pixels")


def test_a_gpu_gets_blocks_of_channels():
    thin = traced("gpu", "thin groups", "bfloat16")
    assert "feature_group_count=2\n" in thin  # 12 groups of 4 channels in each
    assert "bf16[3,3,48,96]" in thin
    stem = traced("gpu", "stem", "bfloat16")
    assert "bf16[4,4,12,4]" in stem  # 2 x 2 pixels of 3 colours
    assert "window_strides=(2, 2)" not in stem


@pytest.mark.parametrize("name", ["point", "few pixels", "many pixels", "wide", "groups"])
def test_only_a_cpu_has_gradients_of_its_own(name, fewer_pixels_are_many):
    """Other platforms, types and dilated kernels keep XLA's convolution and its own gradients."""
    groups = SHAPES[name][-1]
    for kept in (
        traced("onnx", name),
        traced("cpu", name, "bfloat16"),
        traced("cpu", name, rhs_dilation=(2, 2)),
    ):
        assert f"feature_group_count={groups}\n" in kept
        assert "dot_general" not in kept
        assert "custom_vjp" not in kept
    own = traced("cpu", name)
    assert "dot_general" in own
    assert groups == 1 or f"_group_count={groups}\n" not in own


@pytest.mark.parametrize("where", ["cpu", "gpu"])
@pytest.mark.parametrize(
    ("strides", "padding", "others"),
    [
        ((2, 1), NONE, {}),
        ((2, 2), "SAME", {}),
        ((2, 2), NONE, {"lhs_dilation": (2, 2)}),
    ],
)
def test_what_no_other_form_is_made_for_is_left_to_xla(where, strides, padding, others):
    def program(function):
        shapes = [jax.ShapeDtypeStruct(n, "float32") for n in ((2, 12, 12, 3), (7, 7, 3, 4))]
        how = {"window_strides": strides, "padding": padding, "dimension_numbers": NHWC, **others}
        with tracing_for(where):
            return str(jax.make_jaxpr(partial(function, **how))(*shapes))

    assert program(convolve) == program(jax.lax.conv_general_dilated)


@pytest.mark.parametrize(
    ("size", "stride", "padding"),
    [
        (3, 2, ((1, 1), (1, 1))),
        (3, 2, ((0, 1), (0, 1))),
        (2, 2, ((0, 0),) * 2),
        (2, 3, ((1, 0),) * 2),
    ],
)
def test_a_pooling_and_its_gradient_are_those_of_xla(size, stride, padding):
    """Windows that overlap, leave cells out or end before the map does; equal cells in each."""
    rng = np.random.default_rng(7)
    x = np.maximum(rng.integers(-3, 3, (2, 9, 8, 3)), 0).astype(np.float64)

    def value_and_gradient(x):
        out = max_pool(x, size, stride, padding)
        weights = np.random.default_rng(8).integers(-9, 9, out.shape)
        return out, jax.grad(lambda x: (max_pool(x, size, stride, padding) * weights).sum())(x)

    with jax.enable_x64(True):
        cpu, gpu = both(value_and_gradient, x)
    jax.tree.map(np.testing.assert_array_equal, cpu, gpu)  # sums of whole numbers are exact
    assert np.asarray(cpu[1]).any()
    with tracing_for("onnx"):  # where what lies outside of the map is above none of its cells
        below = jax.jit(lambda x: max_pool(x, size, stride, padding))(x.astype(np.float32) - 9)
    np.testing.assert_array_equal(below, cpu[0] - 9)
