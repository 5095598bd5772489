import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drkd_jax.ops.images import prepare
from drkd_jax.types import Batch
from tests import oracles

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
SIZES = np.asarray([[16, 24], [10, 15], [10, 15], [0, 0], [1, 1]], np.int32)
FLIP = np.asarray([True, True, False, True, True])


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    count, boxes_each = len(SIZES), 4
    boxes = oracles.random_boxes(rng, (count, boxes_each), side=10)
    valid = np.arange(boxes_each)[None] < np.asarray([3, 2, 4, 0, 0])[:, None]
    return Batch(
        # Noise in the padding as well: only the size says where an image ends.
        images=rng.integers(0, 256, (count, 16, 24, 3)).astype(np.uint8),
        sizes=SIZES,
        flip=FLIP,
        boxes=np.where(valid[..., None], boxes, 0.0).astype(np.float32),
        labels=rng.integers(0, 3, (count, boxes_each)).astype(np.int32),
        valid=valid,
        image_valid=np.asarray([True, True, True, False, True]),
        index=np.asarray([0, 1, 2, -1, 3], np.int32),
        scale=np.ones((count, 2), np.float32),
    )


@pytest.mark.parametrize("jit", [True, False])
def test_equals_the_definition(batch, jit):
    run = prepare
    if jit:
        run = jax.jit(run, static_argnames=("mean", "std", "dtype"))
    images, _ = run(batch, mean=MEAN, std=STD)
    assert images.dtype == jnp.float32
    for i in range(len(SIZES)):
        expected = oracles.prepare(
            batch.images[i], SIZES[i], FLIP[i], np.array(MEAN), np.array(STD)
        )
        np.testing.assert_allclose(images[i], expected, atol=2e-6)
        outside = np.ones((16, 24), bool)
        outside[: SIZES[i, 0], : SIZES[i, 1]] = False
        np.testing.assert_array_equal(images[i][outside], 0.0)


def test_bgr_is_rgb_with_the_colours_turned_round(batch):
    mean, std = MEAN[::-1], (1.0, 2.0, 3.0)
    bgr, _ = prepare(batch, mean, std, channels="bgr")
    turned = batch._replace(images=batch.images[..., ::-1])
    np.testing.assert_array_equal(bgr, prepare(turned, mean, std)[0])
    rgb, _ = prepare(batch, MEAN, std[::-1])
    np.testing.assert_array_equal(bgr, rgb[..., ::-1])


def test_floats_are_taken_as_they_are(batch):
    halves = batch._replace(images=batch.images.astype(np.float32) + 0.5)
    out, _ = prepare(halves, (0.5, 0.5, 0.5), (1, 1, 1))
    np.testing.assert_array_equal(out, prepare(batch, (0, 0, 0), (1, 1, 1))[0])


def test_boxes_stay_on_what_they_showed(batch):
    _, targets = prepare(batch, MEAN, STD)
    for i, (_, width) in enumerate(SIZES):
        for g in range(4):
            x0, y0, x1, y1 = batch.boxes[i, g]
            mirrored = FLIP[i] and batch.valid[i, g]
            expected = [width - x1, y0, width - x0, y1] if mirrored else [x0, y0, x1, y1]
            np.testing.assert_array_equal(targets.boxes[i, g], np.float32(expected))


def test_a_marked_pixel_moves_with_its_box(batch):
    images = np.zeros_like(batch.images)
    images[1, 4, 2] = 255
    boxes = np.array(batch.boxes)
    boxes[1, 0] = [2, 4, 3, 5]  # that one pixel
    marked = batch._replace(images=images, boxes=boxes)
    out, targets = prepare(marked, (0, 0, 0), (1, 1, 1))
    x0, y0, _, _ = np.asarray(targets.boxes[1, 0], int)
    assert (x0, y0) == (12, 4)
    assert np.argwhere(np.asarray(out[1, ..., 0]) > 0).tolist() == [[y0, x0]]


def test_the_rest_passes_through_and_the_dtype_is_kept(batch):
    images, targets = prepare(batch, MEAN, STD, jnp.bfloat16)
    assert images.dtype == jnp.bfloat16
    for name in ("sizes", "labels", "valid", "image_valid"):
        np.testing.assert_array_equal(getattr(targets, name), getattr(batch, name))


def test_a_filling_image_changes_nothing_of_the_others(batch):
    images, targets = prepare(batch, MEAN, STD)
    fewer = Batch(*(x[:3] for x in batch))
    alone, alone_targets = prepare(fewer, MEAN, STD)
    np.testing.assert_array_equal(images[:3], alone)
    np.testing.assert_array_equal(targets.boxes[:3], alone_targets.boxes)
    np.testing.assert_array_equal(images[3], 0.0)
