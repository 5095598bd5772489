"""Norms, ResNet and FPN: shapes, strides, statistics."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from drkd_jax import models
from drkd_jax.errors import UserError
from drkd_jax.models import resnet
from drkd_jax.models.backbone_settings import BackboneSettings
from drkd_jax.models.conv_norm import conv_norm
from drkd_jax.models.fpn import upsample_nearest
from drkd_jax.models.norm import (
    EPSILON,
    BatchNorm,
    FrozenBatchNorm,
    GroupNorm,
    group_count,
    make_norm,
)
from drkd_jax.models.resnet import Block, Stem
from tests.models import small

RNG = np.random.default_rng(0)
X = RNG.normal(2.0, 3.0, (4, 5, 6, 8)).astype(np.float32)


def randomise(norm):
    norm.scale[...] = jnp.asarray(RNG.uniform(0.5, 2, 8), jnp.float32)
    norm.bias[...] = jnp.asarray(RNG.normal(size=8), jnp.float32)
    return norm


def test_frozen_batch_norm_is_its_formula():
    norm = randomise(FrozenBatchNorm(8))
    norm.mean[...] = jnp.asarray(RNG.normal(size=8), jnp.float32)
    norm.var[...] = jnp.asarray(RNG.uniform(0.1, 2, 8), jnp.float32)
    wanted = (X - norm.mean[...]) / np.sqrt(norm.var[...] + EPSILON)
    wanted = wanted * norm.scale[...] + norm.bias[...]
    np.testing.assert_allclose(norm(jnp.asarray(X), None), wanted, atol=2e-5)


def test_batch_norm_counts_valid_images_only_and_remembers():
    norm = randomise(BatchNorm(8))
    mask = np.array([True, False, True, True])
    seen = X[mask].reshape(-1, 8)
    wanted = (X - seen.mean(0)) / np.sqrt(seen.var(0) + EPSILON)
    wanted = wanted * norm.scale[...] + norm.bias[...]
    np.testing.assert_allclose(norm(jnp.asarray(X), jnp.asarray(mask)), wanted, atol=2e-5)
    np.testing.assert_allclose(norm.mean[...], 0.1 * seen.mean(0), rtol=1e-4)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * seen.var(0, ddof=1), rtol=1e-4)
    before = np.asarray(norm.mean[...])
    wanted = (X - norm.mean[...]) / np.sqrt(norm.var[...] + EPSILON)
    wanted = wanted * norm.scale[...] + norm.bias[...]
    np.testing.assert_allclose(norm(jnp.asarray(X), None), wanted, atol=2e-5)
    np.testing.assert_array_equal(norm.mean[...], before)


def test_group_norm_is_its_formula():
    norm = randomise(GroupNorm(8))
    assert norm.groups == 2
    grouped = X.reshape(4, 30, 2, 4)
    centred = grouped - grouped.mean((1, 3), keepdims=True)
    wanted = (centred / np.sqrt(grouped.var((1, 3), keepdims=True) + EPSILON)).reshape(X.shape)
    wanted = wanted * norm.scale[...] + norm.bias[...]
    np.testing.assert_allclose(norm(jnp.asarray(X), None), wanted, atol=2e-5)


@pytest.mark.parametrize(
    ("channels", "groups"), [(256, 32), (64, 32), (32, 8), (16, 4), (8, 2), (3, 1), (72, 24)]
)
def test_group_counts_divide(channels, groups):
    assert group_count(channels) == groups


@pytest.mark.parametrize("size", [(6, 8), (5, 7), (4, 5), (3, 4)])
def test_upsampling_takes_the_pixel_below(size):
    x = RNG.normal(size=(1, 3, 4, 2)).astype(np.float32)
    got = np.asarray(upsample_nearest(jnp.asarray(x), size))
    for i in range(size[0]):
        for j in range(size[1]):
            assert (got[0, i, j] == x[0, int(i * 3 / size[0]), int(j * 4 / size[1])]).all()


@pytest.mark.parametrize("depth", [10, 14, 18, 26, 34, 50, 152])
def test_every_depth_has_the_promised_pyramid(depth):
    settings = {"detector": "retinanet", "backbone": {"depth": depth, "width": 8}, "channels": 16}
    detector = models.abstract_detector(settings, 3)
    graph, state = nnx.split(detector)
    maps = jax.eval_shape(
        lambda state, images: nnx.merge(graph, state, copy=True).features(images).maps,
        state,
        jax.ShapeDtypeStruct((2, 96, 160, 3), "float32"),
    )
    assert [m.shape for m in maps] == [
        (2, 12, 20, 16),
        (2, 6, 10, 16),
        (2, 3, 5, 16),
        (2, 2, 3, 16),
        (2, 1, 2, 16),
    ]
    assert detector.spec.strides == (8, 16, 32, 64, 128)
    blocks = sum(len(stage) for stage in detector.backbone.stages)
    convolutions = 2 if depth in (10, 18, 34) else 3
    assert depth == blocks * convolutions + 2  # the stem and the old classifier


def test_pooled_level_is_every_second_pixel():
    detector = small.build("faster_rcnn", max_level=6)
    assert detector.spec.strides == (4, 8, 16, 32, 64)
    assert detector.spec.kinds == ("lateral",) * 4 + ("pool",)
    maps = detector.neck(
        tuple(
            jnp.asarray(RNG.normal(size=(1, 16 // s, 24 // s, c)), jnp.float32)
            for s, c in zip((1, 2, 4, 8), detector.backbone.channels, strict=True)
        )
    )
    np.testing.assert_array_equal(maps[4], maps[3][:, ::2, ::2])


@pytest.mark.parametrize(("extra", "source"), [("conv_c5", 64), ("conv_p5", 16)])
def test_extra_levels_come_from_where_they_say(extra, source):
    detector = models.abstract_detector(
        {**small.SETTINGS["retinanet"], "max_level": 7, "extra": extra}, 3
    )
    assert detector.neck.extras[0].kernel.shape == (3, 3, source, 16)
    assert detector.neck.extras[1].kernel.shape == (3, 3, 16, 16)
    assert detector.spec.kinds[-2:] == (extra, extra)


def test_the_relu_before_p7_is_a_choice():
    maps = None
    results = []
    for relu in (False, True):
        detector = small.build("retinanet", max_level=7, extra="conv_p5", extra_relu=relu)
        maps = maps or tuple(
            jnp.asarray(RNG.normal(size=(1, 16 // s, 24 // s, c)), jnp.float32)
            for s, c in zip((1, 2, 4, 8), detector.backbone.channels, strict=True)
        )
        results.append(detector.neck(maps))
    plain, rectified = results
    np.testing.assert_array_equal(plain[-2], rectified[-2])
    assert not np.array_equal(plain[-1], rectified[-1])
    # P6 is made from the finished P5, not from what lies before its 3x3 convolution.
    np.testing.assert_array_equal(plain[-2], detector.neck.extras[0](plain[-3]))


def test_residual_branches_start_at_zero():
    detector = models.init_detector(small.SETTINGS["retinanet"], 3, 0)
    for stage in detector.backbone.stages:
        for block in stage:
            assert not np.any(np.asarray(block.norms[-1].scale[...]))
            assert np.all(np.asarray(block.norms[0].scale[...]) == 1)


def test_no_gradient_reaches_a_frozen_stage():
    backbone = {"depth": 18, "width": 4, "frozen_stages": 2}
    graph, state = nnx.split(small.build("retinanet", backbone=backbone).backbone)
    images = jnp.asarray(RNG.normal(size=(1, 32, 32, 3)), jnp.float32)

    @jax.jit
    @jax.grad
    def gradient(state):
        return sum(jnp.sum(m) for m in nnx.merge(graph, state, copy=True)(images, None))

    for path, leaf in nnx.to_flat_state(gradient(state)):
        below = path[0] == "stem" or path[1] < 2
        if path[-1] in ("kernel", "bias"):
            assert bool(jnp.any(leaf[...] != 0)) != below, path


@pytest.mark.parametrize(("frozen", "norms"), [(0, 0), (1, 3), (2, 6), (4, 12)])
def test_norms_of_frozen_stages_are_in_evaluation(frozen, norms, monkeypatch):
    """The stem has one, the first stage two, each later one two and that of its shortcut."""
    in_evaluation = []

    def noted(layer, norm, x, image_valid):
        in_evaluation.append(image_valid is None)
        return conv_norm(layer, norm, x, image_valid)

    monkeypatch.setattr(resnet, "conv_norm", noted)
    backbone = {"depth": 10, "width": 4, "norm": "bn", "frozen_stages": frozen}
    detector = models.abstract_detector({"detector": "retinanet", "backbone": backbone}, 3)
    graph, state = nnx.split(detector.backbone)
    images, valid = jax.ShapeDtypeStruct((2, 32, 32, 3), "float32"), jnp.ones(2, bool)
    jax.eval_shape(lambda s, x: nnx.merge(graph, s, copy=True)(x, valid), state, images)
    assert in_evaluation == [True] * norms + [False] * (12 - norms)


def test_epsilon_is_a_setting():
    for eps in (0.0, 0.5):
        norm = FrozenBatchNorm(8, eps=eps)
        norm.var[...] = jnp.full(8, 0.25)
        wanted = X / np.sqrt(0.25 + eps)
        np.testing.assert_allclose(norm(jnp.asarray(X), None), wanted, atol=1e-5)
    backbone = {"norm": "frozen_bn", "eps": 0, "depth": 18, "width": 4}
    stem = models.init_detector({"detector": "retinanet", "backbone": backbone}, 3, 0).backbone.stem
    assert stem.norm.eps == 0.0

    of_batch = make_norm(BackboneSettings(norm="bn", eps=0.5, norm_batch=2), 8)
    assert (of_batch.eps, of_batch.group) == (0.5, 2)
    groups = X.reshape(2, -1, 8)
    wanted = (groups - groups.mean(1, keepdims=True)) / np.sqrt(groups.var(1, keepdims=True) + 0.5)
    got = of_batch(jnp.asarray(X), jnp.ones(4, bool))
    np.testing.assert_allclose(got, wanted.reshape(X.shape), atol=5e-6)


def test_grouped_batch_norm_is_that_of_every_group_alone():
    mask = np.array([True, False, True, True])
    whole = BatchNorm(8, group=2)
    got = whole(jnp.asarray(X), jnp.asarray(mask))
    means, variances = [], []
    for images in (slice(0, 2), slice(2, 4)):
        alone = BatchNorm(8)
        wanted = alone(jnp.asarray(X[images]), jnp.asarray(mask[images]))
        np.testing.assert_allclose(got[images], wanted, atol=1e-5)
        means.append(alone.mean[...])
        variances.append(alone.var[...])
    np.testing.assert_allclose(whole.mean[...], np.mean(means, axis=0), rtol=1e-5)
    np.testing.assert_allclose(whole.var[...], np.mean(variances, axis=0), rtol=1e-5)


def test_a_group_of_filling_images_leaves_the_running_statistics_alone():
    mask = np.array([True, True, False, False])
    whole, alone = BatchNorm(8, group=2), BatchNorm(8)
    out = whole(jnp.asarray(X), jnp.asarray(mask))
    alone(jnp.asarray(X[:2]), jnp.asarray(mask[:2]))
    assert np.all(np.isfinite(out))
    np.testing.assert_allclose(whole.mean[...], alone.mean[...], rtol=1e-5)
    np.testing.assert_allclose(whole.var[...], alone.var[...], rtol=1e-5)


def test_groups_have_to_divide_the_batch():
    with pytest.raises(UserError, match=r"norm_batch is 3.*batch of 4"):
        BatchNorm(8, group=3)(jnp.asarray(X), jnp.ones(4, bool))


@pytest.mark.parametrize(("dcn", "outputs"), [("v1", 18), ("v2", 27)])
def test_deformable_convolutions_stand_in_c3_to_c5(dcn, outputs):
    backbone = {"depth": 50, "width": 8, "groups": 2, "group_width": 32, "dcn": dcn}
    detector = models.abstract_detector({"detector": "retinanet", "backbone": backbone}, 3)
    for number, stage in enumerate(detector.backbone.stages):
        for block in stage:
            plain = [isinstance(layer, nnx.Conv) for layer in block.convs]
            assert plain == [True, number == 0, True]
            if number:
                assert block.convs[1].offset.kernel.shape[-1] == outputs
                assert block.convs[1].offset.kernel.shape[2] == 2 * block.convs[1].kernel.shape[2]


def test_batch_norm_is_the_same_on_four_devices(tmp_path):
    given = tmp_path / "given.npz"
    mask = np.array([1, 1, 1, 0, 1, 1, 0, 0], bool)
    x = np.concatenate([X, X[::-1] ** 2 / 5])
    np.savez(given, x=x, mask=mask, weight=RNG.normal(size=x.shape).astype(np.float32))
    found = []
    for count in (1, 4):
        flags = f"--xla_force_host_platform_device_count={count}"
        subprocess.run(
            [
                sys.executable,
                "-m",
                "tests.models.norm_on_devices",
                given,
                tmp_path / f"{count}.npz",
            ],
            env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
            cwd=Path(__file__).parents[2],
            check=True,
        )
        found.append(np.load(tmp_path / f"{count}.npz"))
    one, four = found
    assert (int(one["devices"]), int(four["devices"])) == (1, 4)
    for name in set(one.files) - {"devices"}:
        np.testing.assert_allclose(four[name], one[name], atol=2e-5, err_msg=name)
    assert not np.allclose(one["0 out"], one["2 out"], atol=0.01)


def test_the_stride_of_caffe_is_in_the_first_convolution():
    """A 1x1 convolution of stride 2 reads every second pixel: there the block has stride 1."""
    x = jnp.asarray(RNG.normal(size=(2, 8, 12, 8)), jnp.float32)

    def block(style, stride):
        settings = BackboneSettings(depth=50, width=8, norm="gn", style=style)
        made = Block(
            *(8, 8, stride, settings),
            deformable=False,
            rngs=nnx.Rngs(0),
            dtype=jnp.dtype(jnp.float32),
        )
        made.norms[2].scale[...] = jnp.ones(32)
        return made

    caffe = block("caffe", 2)
    wanted = block("pytorch", 1)(x[:, ::2, ::2], None)
    np.testing.assert_allclose(caffe(x, None), wanted, atol=1e-5)
    assert [layer.strides for layer in caffe.convs] == [2, 1, 1]
    assert float(jnp.abs(caffe(x, None) - block("pytorch", 2)(x, None)).max()) > 0.1


@pytest.mark.parametrize(("rows", "columns"), [(12, 16), (13, 18)])
def test_the_pool_without_padding_begins_inside_and_ends_where_the_map_does(rows, columns):
    """3x3 windows at 0, 2, 4, ..., the last one cut, as Caffe's ceiling mode has them."""
    settings = BackboneSettings(depth=50, width=8, stem=4, pool="ceil")
    stem = Stem(settings, rngs=nnx.Rngs(0), dtype=jnp.dtype(jnp.float32))
    images = jnp.asarray(RNG.normal(size=(1, rows, columns, 3)), jnp.float32)
    before = np.asarray(jax.nn.relu(conv_norm(stem.conv, stem.norm, images, None)))
    sides = [-(-(side - 3) // 2) + 1 for side in before.shape[1:3]]
    wanted = np.stack(
        [
            np.stack(
                [
                    before[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((1, 2))
                    for j in range(sides[1])
                ],
                axis=1,
            )
            for i in range(sides[0])
        ],
        axis=1,
    )
    np.testing.assert_array_equal(stem(images, None), wanted)
    assert wanted.shape[-1] == 4
