"""Creates the arrays of a batch on the host: an empty batch, or images without boxes.

Letters: h w pixels of an image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from drkd_jax.data.config import PipelineConfig
from drkd_jax.data.transforms import fit, resize
from drkd_jax.types import Batch


def empty_batch(config: PipelineConfig, canvas: int, rows: int) -> Batch:
    """A batch of padding images only; its pixels are bytes, or floats of 0 to 255.

    Args:
        config: canvases, rows for boxes and the kind of the pixels.
        canvas: index of the batch's canvas.
        rows: number of images.
    """
    most, kind = config.max_boxes, np.float32 if config.resize == "torchvision" else np.uint8
    return Batch(
        images=np.zeros((rows, *config.canvases[canvas], 3), kind),
        sizes=np.zeros((rows, 2), np.int32),
        flip=np.zeros(rows, bool),
        boxes=np.zeros((rows, most, 4), np.float32),
        labels=np.zeros((rows, most), np.int32),
        valid=np.zeros((rows, most), bool),
        image_valid=np.zeros(rows, bool),
        index=np.full(rows, -1, np.int32),
        scale=np.ones((rows, 2), np.float32),
    )


def placed(
    image: UInt8[np.ndarray, "h w 3"], config: PipelineConfig
) -> tuple[int, tuple[int, int]]:
    """The index of an image's canvas, and its (height, width) there."""
    height, width = image.shape[:2]
    return fit(height, width, config.shorter, config.longer, config.canvases, config.resize)


def image_batch(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]], config: PipelineConfig, rows: int
) -> Batch:
    """A batch of images of one canvas, without boxes; `index` numbers them.

    Args:
        images: RGB, at most ``rows``.
        config: canvases and sizes.
        rows: rows of the batch; those past the images are padding.
    """
    places = [placed(image, config) for image in images]
    batch = empty_batch(config, places[0][0], rows)
    canvas = np.asarray(batch.images)
    for row, (image, (_, (height, width))) in enumerate(zip(images, places, strict=True)):
        canvas[row, :height, :width] = resize(image, (height, width), canvas.dtype)
        batch.sizes[row], batch.index[row], batch.image_valid[row] = (height, width), row, True
        batch.scale[row] = width / image.shape[1], height / image.shape[0]
    return batch
