"""Numbers that both sides of a comparison draw for themselves: weights, pictures, ground truths.

NumPy's `RandomState` gives the same stream in every version, so a fixture needs no weights in it.
Names and layouts are torch's.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

# Of torchvision's "v2" Faster R-CNN: convolutions whose batch norm lies in them on the other side,
# where they have no gradient that could be compared.
FOLDED = ("backbone.fpn.", *(f"roi_heads.box_head.{i}." for i in range(4)))


@dataclasses.dataclass(frozen=True)
class Model:
    """One network and the batches it is run on.

    Attributes:
        name: of the answer's file.
        detector: "faster_rcnn" or "retinanet".
        num_classes: K, without the background.
        batches: (height, width) of the canvas, and of each picture, for each batch.
        depth: of the ResNet.
        width: channels of its stem; 0 for the library's own full-size model.
        channels: of the pyramid, for a width.
        fc: of the second stage, for a width.
        seed: of the weights.
        first: a seed of pictures to begin with, for each batch.
        keep: numbers kept of each tensor of features and of each gradient.
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
    """Pictures as a network sees them, zeros in the padding, and their ground truths."""

    images: np.ndarray  # B 3 H W
    boxes: list[np.ndarray]  # n 4, xyxy, pixels
    labels: list[np.ndarray]  # n, 0..K-1


def weight(name: str, shape: Sequence[int], seed: int) -> np.ndarray:
    """One array of a network whose activations keep their size from layer to layer.

    Args:
        name: torch's; tells norms from kernels.
        shape: torch's.
        seed: of the whole network.
    """
    random = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32)
    leaf = name.rpartition(".")[2]
    if leaf == "running_var":
        drawn = random.uniform(0.5, 1.5, shape)
    elif leaf == "running_mean" or leaf == "bias":
        drawn = random.standard_normal(shape) * 0.2
    elif len(shape) == 1:  # a norm's scale; the last one of a bottleneck keeps the sum in bounds
        drawn = random.uniform(0.8, 1.2, shape) * (0.5 if ".bn3." in name else 1.0)
    else:
        drawn = random.standard_normal(shape) * math.sqrt(2 / math.prod(shape[1:]))
    if "conv_offset." in name:
        # Taps of a deformable convolution that depend strongly on the features make a deep
        # network chaotic, as no trained one is: here they move far, by the bias, and a little.
        drawn *= 5.0 if leaf == "bias" else 0.01
    return drawn.astype(np.float32)


def pictures(
    seed: int, canvas: Sequence[int], sizes: Sequence[Sequence[int]], num_classes: int
) -> Drawn:
    """Blocks of noise at two scales, and two to five boxes of 24 pixels and more a picture.

    Args:
        seed: of the batch.
        canvas: height and width of the batch.
        sizes: height and width of each picture.
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
    """At most ``keep`` of an array's numbers, always the same ones of a name and shape.

    Returns:
        The array itself where it is small enough, else some of its numbers in a row.
    """
    values = np.asarray(values)
    if values.size <= keep:
        return values
    random = np.random.RandomState(zlib.crc32(f"{name}{values.shape}".encode()))
    return values.ravel()[np.sort(random.choice(values.size, keep, replace=False))]
