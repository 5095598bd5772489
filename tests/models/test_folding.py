"""Folded detectors give the same features; stripped ones have only backbone and neck."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from drkd_jax import models
from drkd_jax.models.feature_extractor import FeatureExtractor, strip
from drkd_jax.models.folding import fold
from drkd_jax.types import Features
from tests import margins
from tests.models import small

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(2, 64, 96, 3)).astype(np.float32)


def randomise(detector):
    """Sets random statistics, scales, biases and offsets, like those of a trained network."""
    for path, leaf in nnx.to_flat_state(nnx.state(detector)):
        if path[-1] in ("var", "scale"):
            leaf[...] = jnp.asarray(RNG.uniform(0.5, 1.5, leaf.shape), jnp.float32)
        elif "offset" in path:  # a pixel or so
            leaf[...] = jnp.asarray(RNG.normal(size=leaf.shape) * 0.02, jnp.float32)
        elif path[-1] in ("mean", "bias"):
            leaf[...] = jnp.asarray(RNG.normal(size=leaf.shape) * 0.2, jnp.float32)
    return detector


def features(detector):
    graph, state = nnx.split(detector)
    run = jax.jit(
        lambda s, x: nnx.merge(graph, s, copy=True).features(x).maps, compiler_options=small.QUICK
    )
    return run(state, IMAGES)


@pytest.mark.parametrize(
    "backbone",
    [
        {"depth": 18, "width": 8, "norm": "frozen_bn", "eps": 0.0},
        {"depth": 18, "width": 8, "norm": "bn", "eps": 1e-3},
        {
            "depth": 50,
            "width": 8,
            "groups": 4,
            "group_width": 16,
            "norm": "frozen_bn",
            "dcn": "v2",
            "frozen_stages": 2,
        },
    ],
)
def test_a_folded_detector_has_the_same_features(backbone):
    detector = randomise(small.build("faster_rcnn", backbone=backbone))
    before = nnx.to_pure_dict(nnx.state(detector))
    folded = fold(detector)
    assert type(folded) is type(detector)
    names = {path[-1] for path, _ in nnx.to_flat_state(nnx.state(folded.backbone))}
    assert names == {"kernel", "bias"}
    for wanted, got in zip(features(detector), features(folded), strict=True):
        scale = float(np.abs(wanted).max())
        np.testing.assert_allclose(got, wanted, atol=1e-5 * scale)
    jax.tree.map(np.testing.assert_array_equal, before, nnx.to_pure_dict(nnx.state(detector)))
    assert folded.backbone.num_frozen == detector.backbone.num_frozen


def test_a_folded_detector_detects_the_same():
    # A dozen candidates per level, so that no two scores are equal up to rounding.
    few = {"score": 0.0, "pre_nms": 12, "max_out": 10}
    backbone = {"depth": 18, "width": 8, "norm": "frozen_bn"}
    detector = randomise(small.build("retinanet", backbone=backbone, test=few))
    # Lower logits, so that the best scores do not all round to 1.
    detector.head.cls.kernel[...] = detector.head.cls.kernel[...] * 0.2
    folded = fold(detector)
    assert folded.num_classes == small.NUM_CLASSES
    assert folded.settings.test == detector.settings.test
    sizes = np.array([[64, 96], [60, 70]], np.int32)
    found = []
    for one in (detector, folded):
        with margins.clear():
            found.append(one.predict(Features(features(one), one.spec), sizes))
    np.testing.assert_allclose(found[0].boxes, found[1].boxes, atol=1e-3)
    np.testing.assert_array_equal(found[0].labels, found[1].labels)


def test_a_folded_detector_runs_in_bfloat16():
    settings = {"backbone": {"depth": 18, "width": 8, "norm": "frozen_bn"}}
    exact = randomise(small.build("retinanet", **settings))
    narrow = small.build("retinanet", dtype=jnp.bfloat16, **settings)
    nnx.update(narrow, nnx.state(exact))
    folded = fold(narrow)
    graph, state = nnx.split(folded)
    cast = jax.tree.map(lambda x: x.astype(jnp.bfloat16), state)
    for wanted, got in zip(features(exact), features(nnx.merge(graph, cast)), strict=True):
        assert got.dtype == jnp.bfloat16
        error = np.asarray(got, np.float32) - wanted
        assert np.linalg.norm(error) < 0.02 * np.linalg.norm(wanted)


def test_group_norm_is_left_alone():
    detector = small.build("retinanet")
    assert fold(detector) is detector


def test_a_stripped_detector_is_backbone_and_neck():
    detector = randomise(small.build("faster_rcnn"))
    bare = strip(detector)
    assert type(bare) is FeatureExtractor
    assert bare.spec == detector.spec
    assert bare.stride == detector.stride
    parts = {path[0] for path, _ in nnx.to_flat_state(nnx.state(bare))}
    assert parts == {"backbone", "neck"}
    for wanted, got in zip(features(detector), features(bare), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_stripping_and_folding_commute():
    detector = randomise(
        small.build("faster_rcnn", backbone={"depth": 18, "width": 8, "norm": "frozen_bn"})
    )
    a, b = strip(fold(detector)), fold(strip(detector))
    jax.tree.map(np.testing.assert_array_equal, nnx.state(a), nnx.state(b))
    assert nnx.graphdef(a) == nnx.graphdef(b)


def test_an_abstract_detector_can_be_stripped():
    bare = strip(models.abstract_detector({"detector": "retinanet"}, 80))
    leaves = jax.tree.leaves(nnx.state(bare))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
