"""Turns the loader's images into a network's input, on the device.

Letters: B images, H W pixels of the canvas, G padded ground truths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Float, Int, UInt8

from drkd_jax import boxes as box_ops
from drkd_jax.types import Array, Batch, Targets


def prepare(
    batch: Batch,
    mean: Sequence[float | int],
    std: Sequence[float | int],
    dtype: Any = jnp.float32,
    channels: str = "rgb",
) -> tuple[Float[Array, "B H W 3"], Targets]:
    """Normalises images and mirrors the marked ones with their boxes.

    An image is mirrored inside its own width, so it stays in the top left corner of the canvas.
    Padding is 0 after normalisation, whatever the mean.

    Args:
        batch: images as the loader hands them over, RGB.
        mean: Subtracted from the colours (0..255), in the order of ``channels``.
        std: What the colours are divided by afterwards.
        dtype: Of the returned images; the arithmetic is float32.
        channels: "rgb" or "bgr", the order in which the network reads the colours.

    Returns:
        Images ``[B, H, W, 3]``, and the targets; invalid rows of boxes are unchanged.
    """
    canvas_width = batch.images.shape[2]
    sizes = jnp.asarray(batch.sizes)
    widths = sizes[:, 1, None]
    x = jnp.arange(canvas_width)[None]
    flip = jnp.asarray(batch.flip)
    source = jnp.where(flip[:, None] & (x < widths), widths - 1 - x, x)
    # Mirrored before the conversion: bytes need a quarter of the memory traffic of floats.
    images = jnp.take_along_axis(jnp.asarray(batch.images), source[:, None, :, None], axis=2)
    normalised = normalise(images, sizes, mean, std, dtype, channels)

    boxes, valid = jnp.asarray(batch.boxes), jnp.asarray(batch.valid)
    mirrored = box_ops.flip(boxes, widths)
    boxes = jnp.where((flip[:, None] & valid)[..., None], mirrored, boxes)
    targets = Targets(sizes, boxes, batch.labels, valid, batch.image_valid)
    return normalised, targets


def normalise(
    images: UInt8[Array, "B H W 3"] | Float[Array, "B H W 3"],
    sizes: Int[Array, "B 2"],
    mean: Sequence[float | int],
    std: Sequence[float | int],
    dtype: Any = jnp.float32,
    channels: str = "rgb",
) -> Float[Array, "B H W 3"]:
    """(colour - mean) / standard deviation; 0 outside the image.

    Args:
        images: RGB, 0..255.
        sizes: height and width of each image on the canvas, pixels.
        mean: see `prepare`, also for the arguments below.
        std: what the difference is divided by.
        dtype: of the result.
        channels: the network's order.
    """
    _, canvas_height, canvas_width, _ = images.shape
    heights, widths = sizes[:, 0, None], sizes[:, 1, None]
    inside_x = jnp.arange(canvas_width)[None] < widths
    inside = (jnp.arange(canvas_height)[None] < heights)[:, :, None] & inside_x[:, None, :]
    shift, scale = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    if channels == "bgr":
        images = images[..., ::-1]
    normalised = (images.astype(jnp.float32) - shift) / scale
    return jnp.where(inside[..., None], normalised, 0.0).astype(dtype)
