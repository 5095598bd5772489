"""Random numbers that both sides of a comparison draw: weights, images, ground truths.

NumPy's `RandomState` gives the same stream in all versions, so fixtures need not store weights.
Names and layouts are torch's.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

# Convolutions of torchvision's "v2" Faster R-CNN into which our side folds the batch norm, so that
# their gradients cannot be compared.
FOLDED = ("backbone.fpn.", *(f"roi_heads.box_head.{i}." for i in range(4)))


@dataclasses.dataclass(frozen=True)
class Model:
    """One network and the batches it is run on.

    Attributes:
        name: name of the answer file.
        detector: "faster_rcnn" or "retinanet".
        num_classes: K, without the background.
        batches: (height, width) of the canvas and of each image, per batch.
        depth: depth of the ResNet.
        width: channels of its stem; 0 for the library's full-size model.
        channels: channels of the pyramid, if a width is given.
        fc: width of the second stage, if a width is given.
        seed: seed of the weights.
        first: the first seed of images to try, per batch.
        keep: how many numbers are kept of each feature tensor and each gradient.
        version: 2 for torchvision's "v2" networks.
    """

    name: str
    detector: str
    num_classes: int
    batches: Sequence[Sequence[Any]]
    depth: int = 50
    width: int = 0
    channels: int = 32
    fc: int = 64
    seed: int = 0
    first: Sequence[int] = ()
    keep: int = 2**31
    version: int = 1


class Drawn(NamedTuple):
    """Input images of a network, padded with zeros, and their ground truths."""

    images: np.ndarray  # B 3 H W
    boxes: list[np.ndarray]  # n 4, xyxy, pixels
    labels: list[np.ndarray]  # n, 0..K-1


def weight(name: str, shape: Sequence[int], seed: int) -> np.ndarray:
    """One weight array; activations keep about the same size from layer to layer.

    Args:
        name: torch's name of the array.
        shape: torch's shape of it.
        seed: seed of the network.
    """
    random = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32)
    leaf = name.rpartition(".")[2]
    if leaf == "running_var":
        drawn = random.uniform(0.5, 1.5, shape)
    elif leaf == "running_mean" or leaf == "bias":
        drawn = random.standard_normal(shape) * 0.2
    elif len(shape) == 1:  # a norm's scale; halved at a bottleneck's end to bound the sum
        drawn = random.uniform(0.8, 1.2, shape) * (0.5 if ".bn3." in name else 1.0)
    else:
        drawn = random.standard_normal(shape) * math.sqrt(2 / math.prod(shape[1:]))
    if "conv_offset." in name:
        # If the offsets depended strongly on the features, a deep network would be chaotic, unlike
        # trained ones: here they depend mostly on the bias, and little on the features.
        drawn *= 5.0 if leaf == "bias" else 0.01
    return drawn.astype(np.float32)


def draw_batch(
    seed: int, canvas: Sequence[int], sizes: Sequence[Sequence[int]], num_classes: int
) -> Drawn:
    """Noise in blocks of three sizes, and per image two to five boxes of at least 24 pixels.

    Args:
        seed: seed of the batch.
        canvas: height and width of the batch.
        sizes: height and width of each image.
        num_classes: K.
    """
    random = np.random.RandomState(seed)
    height, width = canvas
    images = np.zeros((len(sizes), 3, height, width), np.float32)
    boxes, labels = [], []
    for image, (h, w) in zip(images, sizes, strict=True):
        for block, strength in ((16, 1.0), (4, 0.7), (1, 0.3)):
            noise = random.standard_normal((3, -(-h // block), -(-w // block)))
            full = noise.repeat(block, axis=1).repeat(block, axis=2)
            image[:, :h, :w] += (strength * full[:, :h, :w]).astype(np.float32)
        count = random.randint(2, 6)
        side = random.uniform(24, 0.7 * min(h, w), (count, 2))
        corner = random.uniform(0, 1, (count, 2)) * (np.array([w, h]) - side)
        boxes.append(np.concatenate([corner, corner + side], axis=1).astype(np.float32))
        labels.append(random.randint(0, num_classes, count))
    return Drawn(images, boxes, labels)


def thin(name: str, values: Any, keep: int) -> np.ndarray:
    """At most ``keep`` numbers of an array, always the same ones for a name and shape.

    Returns:
        The array itself if it is small enough, else some of its numbers, flat.
    """
    values = np.asarray(values)
    if values.size <= keep:
        return values
    random = np.random.RandomState(zlib.crc32(f"{name}{values.shape}".encode()))
    return values.ravel()[np.sort(random.choice(values.size, keep, replace=False))]
